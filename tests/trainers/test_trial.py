import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from layers import CompressedConv2d, UsageError, compress_model, compressed_layers
from spaces import BlockConfig, Network, NetworkConfig, build_model, load_model, read_card, save_weights, state_sha256
from trainers import trial as trial_module
from trainers.data import Data, DataSpec, load_data
from trainers.evaluation import evaluate
from trainers.spec import TrialSpec
from trainers.start.saliency import filter_saliency
from trainers.start.start import initialize
from trainers.training.recipe import TrainingRecipe
from trainers.trial import Trial, load_baseline, run_trial

DATA = DataSpec(train_limit=128)
CONFIG = NetworkConfig(
    blocks={
        "conv1": BlockConfig(basis="chebyshev", harmonics=(2, 3)),
        "layer2": BlockConfig(basis="cosine", harmonics=(2, 2), bits=6, exponent_block=16),
        "layer3": BlockConfig(basis="cosine", harmonics=(3, 2), pruning_rate=0.75, groups=2, bits=4, exponent_block=16),
        "linear": BlockConfig(bits=8),
    }
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DATA)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_weights(build_model("resnet8", classes=10, channels=1), path, {})
    return path


@pytest.fixture(scope="module")
def subject(weights: Path, data: Data) -> tuple[nn.Module, Network]:
    return load_baseline("resnet8", str(weights), data)


@pytest.fixture(scope="module")
def spec(weights: Path, data: Data, subject: tuple[nn.Module, Network]) -> TrialSpec:
    return TrialSpec(
        model="resnet8",
        weights=str(weights),
        weights_sha256=state_sha256(subject[0]),
        data=DATA,
        data_fingerprint=data.fingerprint,
        config=CONFIG,
        epochs=2,
        seed=5,
    )


def _run(spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network]) -> Trial:
    trial = Trial(spec, data=data, baseline=subject[0], network=subject[1], device="cpu")
    for _ in trial.epochs():
        pass
    return trial


def test_a_trial_measures_what_its_packed_model_gives(
    spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network], tmp_path: Path
) -> None:
    before = state_sha256(subject[0])
    trial = _run(spec, data, subject)
    result = trial.result()
    assert state_sha256(subject[0]) == before
    start = compress_model(subject[0], subject[1].forms(CONFIG))
    initialize("calibrated", start, subject[0], data, seed=spec.seed, device=torch.device("cpu"))
    assert result.init_score == evaluate(start, data.val, data.normalize, device="cpu").top1
    assert [epoch.epoch for epoch in result.history] == [1, 2]
    assert result.score == result.metrics[result.score_name] == result.history[-1].score
    assert result.score_name == "val_top1"
    assert result.metrics == result.history[-1].metrics
    assert result.latency_ms is result.latency_b64_ms is None
    assert result.cost == subject[1].cost(CONFIG)
    trial.save(tmp_path / "m.safetensors")
    found = evaluate(load_model(tmp_path / "m.safetensors"), data.val, data.normalize, device="cpu")
    assert found.metrics("val") == {
        **{name: result.metrics[name] for name in ("val_top1", "val_top5")},
        "val_loss": pytest.approx(result.metrics["val_loss"], rel=1e-5),
    }


def test_equal_specs_give_equal_results(spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network]) -> None:
    first, second, other = (_run(s, data, subject) for s in (spec, spec, dataclasses.replace(spec, seed=6)))
    states = [trial.model.state_dict() for trial in (first, second, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert [e.metrics for e in first.history] == [e.metrics for e in second.history]


@pytest.mark.parametrize("init", ["least_squares", "gradient_descent"])
def test_a_trial_begins_as_its_spec_says(init, spec, data, subject) -> None:
    trial = _run(dataclasses.replace(spec, init=init, epochs=0), data, subject)
    expected = compress_model(subject[0], subject[1].forms(CONFIG))
    initialize(init, expected, subject[0], data, seed=spec.seed, device=torch.device("cpu"))
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in trial.model.state_dict().items())


def test_templates_are_chosen_by_the_saliency_that_the_spec_says(spec, data, subject) -> None:
    spec = dataclasses.replace(spec, saliency="gradient", epochs=0)
    scores = filter_saliency("gradient", subject[0], data, seed=spec.seed)
    layers = [layer for layer in compressed_layers(_run(spec, data, subject).model).items() if "layer3" in layer[0]]
    assert len(layers) >= 2
    for name, layer in layers:
        assert isinstance(layer, CompressedConv2d)
        assert layer.template_mask is not None
        most = scores[name].argsort(descending=True)[: int(layer.template_mask.sum())]
        assert set(layer.template_mask.nonzero().flatten().tolist()) == set(most.tolist())


def test_the_uncompressed_network_teaches_where_the_schedule_says(spec, data, subject) -> None:
    taught = dataclasses.replace(spec, epochs=1, recipe=TrainingRecipe(distillation=1.0, lr=0.05))
    shuffled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=data.train.labels.flip(0)))
    states = [_run(taught, found, subject).model.state_dict() for found in (data, shuffled)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    alone = _run(dataclasses.replace(taught, recipe=TrainingRecipe(lr=0.05)), data, subject).model.state_dict()
    assert not all(torch.equal(value, alone[name]) for name, value in states[0].items())


def test_no_epochs_measure_the_start_alone(spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network]) -> None:
    result = _run(dataclasses.replace(spec, epochs=0, latency=True), data, subject).result()
    assert result.score == result.init_score
    assert result.history == ()
    assert result.metrics["val_top5"] > result.metrics["val_top1"] == result.score
    assert result.latency_ms is not None
    assert result.latency_b64_ms is not None
    assert result.latency_b64_ms > result.latency_ms > 0


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainers` where Ray and Optuna cannot be imported."""
    blocked = (
        "import sys; sys.modules.update(ray=None, optuna=None); import runpy; sys.argv = ['trainers', *sys.argv[1:]]; "
    )
    code = blocked + "runpy.run_module('trainers', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_trial_runs_from_its_spec_file_without_ray_and_optuna(spec: TrialSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.replace(spec, epochs=1).to_json()))
    done = _command(str(tmp_path / "spec.json"), "--out", str(tmp_path / "m.safetensors"), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["cost"]["size_bytes"] == sum(
        tensor.numel() * tensor.element_size() for tensor in _payload(tmp_path / "m.safetensors")
    )
    assert result["score"] == result["metrics"]["val_top1"] == result["history"][-1]["score"]
    assert result["score_name"] == "val_top1"
    assert f"start: val_top1 {result['init_score']:.4f}\n" in done.stderr
    assert "epoch 1/1: train_loss" in done.stderr


def test_a_full_disk_behind_the_answer_is_one_sentence(spec: TrialSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.replace(spec, epochs=0).to_json()))
    command = [sys.executable, "-m", "trainers", str(tmp_path / "spec.json"), "--device", "cpu"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "cannot write the answer: No space left on device"


def test_a_trial_of_single_layers_runs_from_its_spec_alone(spec: TrialSpec, data: Data) -> None:
    blocks = {name: BlockConfig(basis="cosine", harmonics=(2, 2)) for name in ("layer1.0.conv1", "layer3.0.conv2")}
    said: list[int] = []
    asked = dataclasses.replace(spec, config=NetworkConfig(blocks=blocks), epochs=1)
    trial = run_trial(asked, data, "cpu", on_epoch=lambda epoch: said.append(epoch.epoch))
    _, layers = load_baseline(asked.model, asked.weights, data, "layer")
    assert trial.result().spec_digest == asked.digest(layers)
    assert said == [1]


def test_a_packed_model_tells_no_folder(
    spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network], tmp_path: Path
) -> None:
    trial = _run(dataclasses.replace(spec, epochs=0), data, subject)
    trial.save(tmp_path / "m.safetensors")
    assert read_card(tmp_path / "m.safetensors")["spec"]["weights"] == "w.safetensors"
    assert str(Path(spec.weights).parent).encode() not in (tmp_path / "m.safetensors").read_bytes()


def test_a_packed_model_names_the_operators_that_its_flops_leave_out(
    spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network], tmp_path: Path
) -> None:
    baseline, network = subject
    for names in ((), ("aten._fft_r2c",)):
        trial = _run(
            dataclasses.replace(spec, epochs=0), data, (baseline, dataclasses.replace(network, uncounted=names))
        )
        trial.save(tmp_path / "m.safetensors")
        assert read_card(tmp_path / "m.safetensors").get("uncounted", []) == list(names)


def _payload(path: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(path).values())


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"weights_sha256": "00"}, 2, "weights_sha256 (=00) must be that of"),
        ({"data_fingerprint": "00"}, 2, "data_fingerprint (=00) must be that of the data"),
        ({"bogus": 1}, 2, "key (='bogus') of the spec must be one of"),
    ],
)
def test_a_spec_that_does_not_hold_is_refused_in_a_sentence(
    spec: TrialSpec, tmp_path: Path, change: dict[str, object], code: int, message: str
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({**spec.to_json(), **change}))
    done = _command(str(tmp_path / "spec.json"))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_trial_goes_on_from_its_checkpoint_as_if_it_had_never_stopped(
    spec: TrialSpec, data: Data, subject: tuple[nn.Module, Network], tmp_path: Path
) -> None:
    layer1 = BlockConfig(basis="cosine", harmonics=(2, 2), allocation="filter", arithmetic="int8")
    blocks = {**CONFIG.blocks, "layer1": layer1}
    asked = dataclasses.replace(spec, epochs=3, config=NetworkConfig(blocks=blocks))
    whole = _run(asked, data, subject)
    baseline, network = subject
    where = {"data": data, "baseline": baseline, "network": network, "device": "cpu"}
    begun = Trial(asked, **where)
    next(begun.epochs())
    begun.checkpoint(tmp_path / "c")
    resumed = Trial(asked, **where, resume_from=tmp_path / "c")
    assert [epoch.epoch for epoch in resumed.history] == [1]
    assert [epoch.epoch for epoch in resumed.epochs()] == [2, 3]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    one, other = whole.result(), resumed.result()
    assert (one.metrics, one.init_score) == (other.metrics, other.init_score)
    assert other.compress_s == begun.result().compress_s
    templates = dataclasses.replace(asked, saliency="gradient")
    begun = Trial(templates, **where)
    next(begun.epochs())
    begun.checkpoint(tmp_path / "other")
    with pytest.raises(UsageError, match="of a training with saliency 'gradient', not 'magnitude'"):
        Trial(asked, **where, resume_from=tmp_path / "other")
    with pytest.raises(UsageError, match="is the checkpoint of a training with seed 5, not 6"):
        Trial(dataclasses.replace(asked, seed=6), **where, resume_from=tmp_path / "c")


def test_the_command_goes_on_from_the_checkpoint_it_left(spec: TrialSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    asked = [*(sys.executable, "-m", "trainers", str(tmp_path / "spec.json")), "--device", "cpu"]
    asked += ["--checkpoint", str(tmp_path / "c")]
    first, second = (subprocess.run(asked, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "resumed" not in first.stderr
    assert "resumed after epoch 2" in second.stderr
    assert json.loads(first.stdout)["history"] == json.loads(second.stdout)["history"]


def test_each_phase_is_timed(spec, data, subject, monkeypatch) -> None:
    """Each takes a tenth of a second longer here; the compression itself is a part of its phase."""
    for name in ("compress_model", "initialize", "evaluate"):
        real = getattr(trial_module, name)
        monkeypatch.setattr(trial_module, name, lambda *a, _real=real, **k: (time.sleep(0.1), _real(*a, **k))[1])
    began = time.perf_counter()
    found = _run(spec, data, subject).result()
    took = time.perf_counter() - began
    assert found.compress_s >= 0.2
    assert found.evaluate_s >= 0.1
    assert found.finetune_s == sum(epoch.seconds for epoch in found.history) > 0
    assert found.compress_s + found.evaluate_s + found.finetune_s <= took


def test_filters_leave_gradually_where_the_schedule_says(spec, data, subject) -> None:
    """At first nothing has left, so the first loss is that of the network whose filters are all its own."""
    gradual = TrainingRecipe(lr=0.0, gradual_pruning=0.9, precision="fp32")
    config = NetworkConfig(blocks={"layer3": BlockConfig(pruning_rate=0.75, transform="zero")})
    losses = {}
    for name, recipe in (("at once", TrainingRecipe(lr=0.0, precision="fp32")), ("gradual", gradual)):
        asked = dataclasses.replace(spec, config=config, recipe=recipe, init="least_squares", epochs=1)
        losses[name] = _run(asked, data, subject).history[0].train_loss
    assert losses["gradual"] != losses["at once"]
