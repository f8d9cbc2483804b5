import json
import os
import re

import pytest
import torch

from layers.errors import OvertoneError, UsageError
from results.export.export import export_model
from results.export.model_card import model_card
from spaces.packed import load_model
from spaces.portable import FORMATS
from tests.spaces.mixed import CARD as MIXED_CARD
from tests.spaces.mixed import save_mixed

CARD = {
    "study": "demo",
    "trial": "0a1b2c3d4e",
    "score_name": "val_top1",
    "score": 0.95,
    "val_n": 360,
    "test_n": 360,
    "metrics": {"val_top5": 0.99, "val_loss": 0.21, "val_top1": 0.95},
    "test_metrics": {"test_top1": 0.94, "test_loss": 0.25},
}
COSTS = {"size_bytes": 12_345, "flops": 1_234_567, "parameters": 999}

ANY_MODEL = [format for format in FORMATS if format != "pte"]
"""The formats of any network; pte is for those in int8."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed ResNet-8 with every kind of compression, on 8x8 images of one channel."""
    path = tmp_path_factory.mktemp("packed") / "trial.safetensors"
    return save_mixed(path, {**MIXED_CARD, "mean": [0.3], "std": [0.4]})


@pytest.fixture(scope="module")
def exported(packed, tmp_path_factory):
    """The folder of each format."""
    folder = tmp_path_factory.mktemp("exported")
    return {name: export_model(packed, folder / name, format=name, card={**CARD, **COSTS}) for name in ANY_MODEL}


@pytest.fixture
def images(np_rng):
    return torch.from_numpy(np_rng.standard_normal((64, 1, 8, 8), dtype="float32"))


def test_safetensors_is_the_packed_file_itself(packed, exported, images):
    out = exported["safetensors"]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == packed.read_bytes()
    with torch.no_grad():
        assert torch.equal(load_model(out / "model.safetensors")(images), load_model(packed)(images))
    facts = json.loads((out / "config.json").read_text())
    assert facts["study"] == "demo"
    assert facts["model"] == "resnet8"
    assert facts["file_format"] == "safetensors"


def test_what_proves_the_file_adds_to_the_card_and_leaves_nothing_where_it_fails(packed, tmp_path):
    def prove(file):
        assert file.read_bytes() == packed.read_bytes()
        return {"differing": 0}

    card = {**CARD, "differing": 5, "same_file": True}
    out = export_model(packed, tmp_path / "out", format="safetensors", card=card, prove=prove)
    assert json.loads((out / "config.json").read_text())["differing"] == 0
    text = (out / "README.md").read_text()
    assert "this file gave the packed model's class for all 360 validation images." in text
    assert "trained again" not in text

    def refuse(file):
        raise OvertoneError("it is another model")

    with pytest.raises(OvertoneError, match="it is another model"):
        export_model(packed, tmp_path / "other", format="safetensors", card=card, prove=refuse)
    assert list(tmp_path.iterdir()) == [out]


def test_readme_has_what_people_need(exported):
    for format, out in exported.items():
        text = (out / "README.md").read_text()
        assert "- study: `demo`" in text
        score, top5, loss = re.findall(r"^- (`val_.*)$", text, re.MULTILINE)
        assert score == "`val_top1`: 95.00 % of n = 360 images (95 % Wilson interval 92.24 to 96.81 %)"
        assert top5.startswith("`val_top5`: 99.00 % of n = 360 images (95 % Wilson interval ")
        assert loss == "`val_loss`: 0.2100"
        assert "- `test_top1`: 94.00 % of n = 360" in text
        assert "- `test_loss`: 0.2500\n" in text
        assert "The search chose by `val_top1`, so that figure is\noptimistic" in text
        assert "packed size: 12.35 kB" in text
        assert "compute: 1.235 MFLOPs" in text
        assert "- layer1: cosine 2x3, 50 % templates, G=2, 8 bits" in text
        assert f"model.{format}" in text
        assert f"{(out / f'model.{format}').stat().st_size / 1e3:,.2f} kB" in text


@pytest.mark.parametrize(("classes", "shown"), [(10, True), (5, False)])
def test_readme_has_both_latencies_and_top5_of_more_than_five_classes(classes, shown):
    facts = {"model": "m", "classes": classes, "channels": 3, "file_format": "safetensors"}
    facts |= {"latency_runtime": "torch", "latency_threads": None, "latency_device": "NVIDIA H100"}
    measured = {"metrics": {"val_top5": 0.75}, "val_n": 400, "latency_ms": 1.234, "latency_b64_ms": 20.56}
    text = model_card(facts | measured, 1000)
    for batch, ms in (1, "1.23"), (64, "20.6"):
        assert f"- latency at batch {batch} when it was searched: {ms} ms in torch on NVIDIA H100\n" in text
    assert ("- `val_top5`: 75.00 % of n = 400 images" in text) == shown


def test_a_card_tells_what_this_file_and_the_uncompressed_networks_take():
    facts = {"model": "m", "classes": 10, "channels": 3, "file_format": "onnx", "emulated": True}
    place = {"runtime": "onnxruntime", "threads": 1, "device": "Z80", "versions": {"onnxruntime": "1.31.1"}}
    sides = {
        "file": {"bytes": 12_345, "latency_ms": {"1": 0.25, "64": 20.0}},
        "uncompressed": {"bytes": 1_156_000, "latency_ms": {"1": 0.5, "64": 50.0}},
    }
    ratios = {"1": {"ratio": 0.5, "low": 0.45, "high": 0.55}, "64": {"ratio": 0.4, "low": 0.38, "high": 0.41}}
    text = model_card({**facts, "bench": {**place, **sides, "ratios": ratios, "rounds": {"1": 31, "64": 9}}}, 12_345)
    assert "- this file: 12.35 kB\n- the uncompressed network's file: 1,156.00 kB\n" in text
    ratio = "ratio 0.40 (95 % interval 0.38 to 0.41)"
    assert f"- time at batch 64: 20 ms, the uncompressed network 50 ms; {ratio}\n" in text
    assert "Times are medians over turns in onnxruntime on Z80, 1 thread\n(onnxruntime 1.31.1).\n" in text
    assert "floating-point arithmetic emulates that" in text


def test_a_card_over_several_seeds_gives_their_mean():
    facts = {"model": "m", "classes": 10, "channels": 3, "file_format": "safetensors", "seeds": 3, "score_name": "miou"}
    over = {"score": 0.6, "score_mean": 0.5, "score_low": 0.4, "score_high": 0.6, "score_repeats": 0.45}
    text = model_card(facts | over, 1000)
    assert "Trained with 3 seeds, of which this is the first, the network has a mean `miou` of\n50.00 %" in text
    assert "(95 % interval of Student's t over the seeds, 40.00 to 60.00 %)" in text
    assert "`miou`, which favors lucky runs; the mean over the other seeds alone is 45.00 %." in text
    assert "single seed" not in text


@pytest.mark.parametrize("model", ["object:Net", "mine.nets:make", "resnet8"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_card_asks_for_the_network_where_it_is_the_users_own(model, format):
    text = model_card({"model": model, "classes": 10, "channels": 3, "file_format": format}, 1000)
    asked = ":" in model and format == "safetensors"
    assert ('ot.load_model("model.safetensors", model=net)' in text) == asked
    assert ("`net` is the uncompressed network, or its factory" in text) == asked


@pytest.mark.parametrize("pixels", [{}, {"pixels": "float32"}])
def test_a_card_says_how_images_are_scaled(pixels):
    facts = {"model": "m", "classes": 10, "channels": 1, "file_format": "safetensors", "mean": [0.5], "std": [0.25]}
    text = model_card(facts | pixels, 1000)
    start = "Take the floats of the data set" if pixels else "Scale pixels to [0, 1]"
    assert f"{start}, then subtract the mean [0.5] and divide by the deviation [0.25], by channel." in text


def test_a_card_names_what_its_flops_leave_out():
    facts = {"model": "m", "classes": 10, "channels": 1, "file_format": "safetensors", "flops": 2_000_000}
    assert "without" not in model_card(facts, 1000)
    text = model_card(facts | {"uncounted": ["aten._fft_r2c", "mine.product"]}, 1000)
    assert "(2 x multiply-accumulates), without the products of `aten._fft_r2c`, `mine.product`\n" in text


@pytest.mark.parametrize(("own", "where"), [(True, "in a process of its own"), (False, "back with the network's own")])
def test_a_card_says_what_read_the_file(own, where):
    facts = {"model": "m", "classes": 10, "channels": 1, "file_format": "safetensors", "differing": 0, "val_n": 9}
    assert f"Read {where}" in model_card(facts | {"own_process": own}, 1000)


def test_unknown_figures_are_left_out_and_names_cannot_be_markup(packed, tmp_path):
    card = {"study": "`<script>`\n# x", "model": "<b>[net](x)</b>", "score_name": "val_top1", "score": 0.5}
    text = (export_model(packed, tmp_path / "out", format="safetensors", card=card) / "README.md").read_text()
    assert "- `val_top1`: 50.00 %\n" in text
    assert "- `test_" not in text
    assert "packed size" not in text
    assert "Wilson interval" not in text
    assert "# &lt;b&gt;\\[net\\](x)&lt;/b&gt;, compressed by Overtone" in text
    assert "- study: `'<script>' # x`" in text


@pytest.mark.parametrize("format", ANY_MODEL)
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_readme_snippets_run(exported, images, monkeypatch, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    out = exported[format]
    snippet = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(out)
    names: dict[str, object] = {"images": images}
    exec(snippet, names)
    assert tuple(names["logits"].shape) == (len(images), 10)


def test_readme_of_a_packed_model_says_where_overtone_comes_from(exported):
    """Nobody has published it in an index of packages."""
    text = (exported["safetensors"] / "README.md").read_text()
    assert "import overtone as ot  # installed from a checkout of its repository: pip install .\n" in text
    assert 'model = ot.load_model("model.safetensors")\n' in text


def test_folder_in_use_is_refused(packed, tmp_path):
    (tmp_path / "empty").mkdir()
    export_model(packed, tmp_path / "empty", format="safetensors", card=CARD)
    before = sorted(path.name for path in (tmp_path / "empty").iterdir())
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file"):
        with pytest.raises(UsageError, match=f"{name}'\\) must be a new or empty folder$"):
            export_model(packed, tmp_path / name, format="safetensors", card=CARD)
    with pytest.raises(OvertoneError, match=r"cannot write '.*file/out': "):
        export_model(packed, tmp_path / "file" / "out", format="safetensors", card=CARD)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == before


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_failure_leaves_no_folder_behind(packed, tmp_path, monkeypatch, format):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.export, "export", fail)
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(OvertoneError, match=f"^cannot write the network 'resnet8' as {format}: no such operator$"):
        export_model(packed, tmp_path / "out", format=format, card=CARD)
    assert list(tmp_path.iterdir()) == []


def test_read_only_place_is_one_sentence(packed, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OvertoneError, match=r"cannot write '.*': Read-only file system"):
        export_model(packed, tmp_path / "out", format="safetensors", card=CARD)
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_and_foreign_file_are_refused(packed, tmp_path):
    with pytest.raises(UsageError, match=r"^format \(='tflite'\) must be one of safetensors, onnx, pt2, pte$"):
        export_model(packed, tmp_path / "out", format="tflite", card=CARD)
    (tmp_path / "foreign.safetensors").write_bytes(b"not a model")
    with pytest.raises(OvertoneError, match=r"^cannot read the packed model '.*foreign\.safetensors': "):
        export_model(tmp_path / "foreign.safetensors", tmp_path / "out", format="safetensors", card=CARD)
    assert not (tmp_path / "out").exists()


def test_model_without_an_image_size_cannot_be_traced(packed, tmp_path):
    with pytest.raises(
        OvertoneError, match=r"^image_size \(=None\) of the packed model's card must be a size in pixels"
    ):
        export_model(packed, tmp_path / "out", format="pt2", card={"image_size": None})
    assert not (tmp_path / "out").exists()
