import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.queries.query import query
from results.schema import TrialRow
from search.api.study import Study
from search.commands.display import export_line
from search.export import verify
from search.study.plan import StudyPlan
from search.study.record import sketch_row
from search.study.workload import Workload
from spaces import load_model, read_card, save_model
from spaces.portable import FORMATS, WriteOptions
from tests.search.conftest import CONFIG
from tests.search.studies import export_trial
from trainers.data import load_data
from trainers.evaluation import predict
from trainers.trial import run_trial


@pytest.fixture
def study(run_alone: Callable[[StudyPlan], str], plan: StudyPlan) -> str:
    return run_alone(plan)


@pytest.fixture
def classes(ledger: Ledger, study: str, plan: StudyPlan) -> torch.Tensor:
    """What the trial's model says of the validation images."""
    data, (row,) = load_data(plan.data), ledger.trials(study).to_pylist()
    model = load_model(ledger.model_path(row["model_sha256"]))
    return predict(model, data.val, data.normalize, device="cpu")


def logits_of(classes: torch.Tensor, of_test: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs whose validation images have these classes, and those of the 359 test images are equal, of class 0."""
    return torch.nn.functional.one_hot(classes, 10).float(), torch.full((359, 10), of_test)


@pytest.mark.parametrize("format", ["safetensors", "onnx", "pt2"])
@pytest.mark.filterwarnings("ignore")
def test_an_export_is_proven_and_tells_test_accuracy(
    ledger: Ledger,
    study: str,
    tmp_path: Path,
    format: str,
    time_export: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "time_export", time_export)
    card = export_trial(ledger, study, "knee", where=None, format=format, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"model.{format}", "config.json", "README.md"}
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["test_metrics"] == card["test_metrics"]
    row = ledger.trials(study).to_pylist()[0]
    assert (told["score_name"], told["score"]) == (card["score_name"], card["score"]) == ("val_top1", row["score"])
    assert told["metrics"] == card["metrics"] == dict(row["metrics"]) == dict(row["history"][-1]["metrics"])
    assert told["metrics"]["val_top5"] > told["metrics"]["val_top1"] == row["score"]
    assert 1 >= card["test_metrics"]["test_top5"] > card["test_metrics"]["test_top1"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"- `test_top5`: {100 * card['test_metrics']['test_top5']:.2f} % of n = 359 images" in text
    assert "latency" not in text
    assert (told["val_n"], told["test_n"]) == (360, 359)
    assert told["differing"] == card["differing"] <= (0 if format == "safetensors" else 1)
    assert "this file gave the packed model's class for" in text
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    times = told["bench"]
    assert times == card["bench"]
    assert times["file"]["bytes"] == (tmp_path / "out" / f"model.{format}").stat().st_size
    assert times["uncompressed"]["bytes"] > times["file"]["bytes"]
    assert (times["runtime"], times["threads"]) == ("onnxruntime" if format == "onnx" else "torch", 1)
    assert "the uncompressed network's file: " in text
    assert all(f"time at batch {batch}: " in text for batch in times["file"]["latency_ms"])
    assert f"kB) and takes {times['file']['latency_ms']['1']:.3g} ms at batch 1 (unc" in export_line(tmp_path, card)


def test_figures_of_the_test_images_are_those_of_the_file(
    ledger: Ledger,
    study: str,
    plan: StudyPlan,
    tmp_path: Path,
    classes: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    card = export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "out")
    zeros = int((load_data(plan.data).test.labels == 0).sum())
    assert card["test_metrics"]["test_top1"] == pytest.approx(zeros / 359)
    assert card["test_metrics"]["test_loss"] == pytest.approx(math.log(10))
    assert "Figures of the test images are this file's own." in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes, math.nan))
    with pytest.raises(OvertoneError, match=r"^the exported file gives test images outputs that are infinite or not"):
        export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_a_card_tells_the_accuracy_over_seeds(
    ledger: Ledger, study: str, tmp_path: Path, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "one")
    assert "One training run of a single seed." in (tmp_path / "one" / "README.md").read_text()
    row = TrialRow.from_record(ledger.trials(study).to_pylist()[0])
    scores = [row.score or 0, 0.25, 0.35]
    for seed, value in enumerate(scores[1:], 1):
        ledger.append(dataclasses.replace(row, trial=f"r{seed}", repeat_of="abc", seed=seed, score=value))
    card = export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "three")
    assert (card["seeds"], card["score_repeats"]) == (3, pytest.approx(0.3))
    assert card["score_mean"] == pytest.approx(sum(scores) / 3)
    text = (tmp_path / "three" / "README.md").read_text()
    low, high = (f"{100 * card[f'score_{side}']:.2f}" for side in ("low", "high"))
    assert "Trained with 3 seeds, of which this is the first" in text
    assert f"{100 * card['score_mean']:.2f} % (95 % interval of Student's t over the seeds, {low} to {high} %)" in text
    assert "single seed" not in text


def test_a_sketch_is_exported_by_its_id_and_said_to_be_never_trained(
    ledger: Ledger, study: str, plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload.load(plan)
    spec = plan.sketch_spec(CONFIG, **workload.hashes())
    trial = run_trial(spec, workload.data, "cpu", on_epoch=lambda epoch: None)
    trial.save(tmp_path / "sketch.safetensors")
    report = {"result": json.dumps(trial.result().to_json()), "device": "cpu"}
    suggestion = {"trial": "sketched", "number": 0, "spec": spec.to_json()}
    row = sketch_row(study, suggestion, report, ledger.put_model(tmp_path / "sketch.safetensors"))
    ledger.append(row)
    score = trial.result().init_score
    classes = predict(trial.model, workload.data.val, workload.data.normalize, device="cpu")
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    card = export_trial(ledger, study, "sketched", where=None, format="safetensors", out=tmp_path / "out")
    assert (card["status"], card["score"], card["init_score"], card["epochs"]) == ("sketch", None, score, 0)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"- `init_top1`: {100 * score:.2f} % of n = 360 images" in text
    assert "Calibrated and never trained: a sketch" in text
    assert "single seed" not in text
    assert "`val_top1`" not in text
    line = export_line(tmp_path, card)
    assert "sketch, calibrated and never trained, sketched, " in line
    assert f"init_top1 {score:.4f}, test_top1" in line
    assert [Study(ledger, study).pick(which).id for which in ("best", "knee")] == ["abc", "abc"]
    ledger.store.delete(f"models/{row.model_sha256}.safetensors")
    with pytest.raises(OvertoneError, match="the model of trial sketched was not kept"):
        Study(ledger, study).trial("sketched").export(tmp_path / "gone")
    again = Study(ledger, study).trial("sketched").export(tmp_path / "again", rerun=True, device="cpu", progress=False)
    assert (again["init_score"], again["same_file"]) == (score, True)


def test_the_card_and_the_query_of_the_front_give_one_interval(
    ledger: Ledger, study: str, tmp_path: Path, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds that agree still leave the rounding of accuracies to whole images."""
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    row = TrialRow.from_record(ledger.trials(study).to_pylist()[0])
    for seed in (1, 2):
        ledger.append(dataclasses.replace(row, trial=f"r{seed}", repeat_of="abc", seed=seed))
    card = export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "out")
    (member,) = query(ledger, study, front=True).to_dict("records")
    names = ("score_mean", "score_low", "score_high", "score_repeats")
    assert [card[name] for name in names] == [member[name] for name in names]
    assert card["score_low"] < card["score_mean"] < card["score_high"]


def test_a_file_that_says_something_else_is_not_exported(
    ledger: Ledger, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(source: Path, target: Path, *_: object) -> None:
        model = load_model(source)
        with torch.no_grad():
            model.linear.bias[3] += 100.0
        save_model(model, target, card={k: v for k, v in read_card(source).items() if k not in ("format", "forms")})

    monkeypatch.setitem(FORMATS, "safetensors", spoil)
    with pytest.raises(OvertoneError, match="the exported safetensors gives another class than trial abc for"):
        export_trial(ledger, study, "best", where=None, format="safetensors", out=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "m.safetensors"}


@pytest.mark.parametrize(
    ("format", "differing", "rounds", "taken"),
    [
        *(("safetensors", 1, True, False), ("pt2", 1, True, True), ("onnx", 1, True, True), ("onnx", 2, True, False)),
        *(("onnx", 1, False, False), ("pt2", 1, False, False)),
    ],
)
def test_other_runtimes_may_differ_for_one_image_in_two_hundred_where_activations_are_rounded(
    ledger: Ledger,
    study: str,
    tmp_path: Path,
    classes: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    differing: int,
    rounds: bool,
    taken: bool,
) -> None:
    """Of 360 images that is one; without the exporters, as only the comparison counts here."""
    others = torch.cat([(classes[:differing] + 1) % 10, classes[differing:]])
    monkeypatch.setattr(verify, "_rounds", lambda model: rounds)
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(others))
    monkeypatch.setitem(FORMATS, format, FORMATS["safetensors"])
    out = tmp_path / "out"
    if not taken:
        with pytest.raises(OvertoneError, match=f"another class than trial abc for {differing} of 360 validation"):
            export_trial(ledger, study, "abc", where=None, format=format, out=out)
        assert not out.exists()
        return
    card = export_trial(ledger, study, "abc", where=None, format=format, out=out)
    assert card["differing"] == json.loads((out / "config.json").read_text())["differing"] == 1
    assert (
        "class for 359 of 360 validation images: other runtimes add in another order" in (out / "README.md").read_text()
    )
    assert "the exported file gives the trial's class for 359 of 360 validation images" in export_line(out, card)


def test_filters_get_seven_bits_where_eight_give_other_classes(
    ledger: Ledger, study: str, tmp_path: Path, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = torch.cat([(classes[:20] + 1) % 10, classes[20:]])
    tried: list[bool] = []

    def write(source: Path, target: Path, card: Any, model: Any, options: WriteOptions) -> None:
        tried.append(options.seven_bits)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(verify, "int8_layers", lambda model: {"conv1": model})
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(others if len(tried) < 2 else classes))
    monkeypatch.setattr(verify, "time_export", lambda *_: {})
    monkeypatch.setitem(FORMATS, "onnx", write)
    card = export_trial(ledger, study, "abc", where=None, format="onnx", out=tmp_path / "out")
    assert tried == [False, True]
    assert card["differing"] == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["file_options"] == ["seven_bits"]
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(others))
    with pytest.raises(OvertoneError, match="another class than trial abc for 20 of 360 validation images"):
        export_trial(ledger, study, "abc", where=None, format="onnx", out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_two_classes_tie_within_the_rounding_of_float32() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0 - 1e-6], [-3.0, -7.0, -3.001]])
    assert verify._are_ties(logits, torch.tensor([2, 0]))
    assert not verify._are_ties(logits, torch.tensor([1, 2]))


def test_the_tensors_take_what_the_ledger_says(
    ledger: Ledger, study: str, tmp_path: Path, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    row = TrialRow.from_record(ledger.trials(study).to_pylist()[0])
    ledger.append(dataclasses.replace(row, trial="other", size_bytes=(row.size_bytes or 0) + 1))
    said = f"holds {row.size_bytes} bytes of tensors, size_bytes of trial other is {(row.size_bytes or 0) + 1}"
    with pytest.raises(OvertoneError, match=said):
        export_trial(ledger, study, "other", where=None, format="safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shipped_file_tells_no_folder(
    ledger: Ledger, study: str, tmp_path: Path, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "logits_in_subprocess", lambda *_: logits_of(classes))
    export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes()
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["spec"]["weights"], told["dataset"]) == ("resnet8.safetensors", "digits")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            "front",
            r"model of trial abc was not kept \(--keep front\): add --rerun \(rerun=True\) to train it again, 1 epoch$",
        ),
        (
            "all",
            r"the model of trial abc is not in the store: add --rerun \(rerun=True\) to train it again, 1 epoch$",
        ),
    ],
)
def test_a_model_that_was_not_kept_is_not_exported(
    ledger: Ledger, study: str, tmp_path: Path, keep: str, message: str
) -> None:
    ledger.update_study(study, {"keep": keep})
    ledger.model_path(ledger.trials(study).to_pylist()[0]["model_sha256"]).unlink()
    with pytest.raises(OvertoneError, match=message):
        export_trial(ledger, study, "abc", where=None, format="safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"which": "nope"}, r"pick \(='nope'\) must be best, knee or an id"),
        ({"format": "tflite"}, "must be one of safetensors, onnx, pt2, pte"),
        ({"where": "size_bytes < "}, "is refused"),
    ],
)
def test_wrong_use_is_named(
    ledger: Ledger, study: str, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    wanted = {"which": "knee", "where": None, "format": "safetensors", **arguments}
    with pytest.raises(UsageError, match=message):
        export_trial(ledger, study, wanted["which"], where=wanted["where"], format=wanted["format"], out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_folder_in_use_is_left_alone(ledger: Ledger, study: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UsageError, match="must be a new or empty folder"):
        export_trial(ledger, study, "knee", where=None, format="safetensors", out=tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"
