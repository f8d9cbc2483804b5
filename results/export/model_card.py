"""The model card of an exported network: where it came from, how good it is and how sure that is, how to load it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from results.analysis.intervals import wilson_interval
from results.formatting import format_block, format_flops, format_kilobytes, format_place, percent
from results.objectives import init_name
from results.schema import TrialStatus, block_records

__all__ = ["model_card"]

_LOADING = {
    "safetensors": """import overtone as ot  # installed from a checkout of its repository: pip install .

model = ot.load_model("model.safetensors")
logits = model(images)""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images.numpy()})""",
    "pt2": """import torch
from torch.fx.experimental.const_fold import split_const_subgraphs

model = split_const_subgraphs(torch.export.load("model.pt2").module())  # builds the filters at the first call
(logits,) = model(images)""",
    "pte": """from executorch.runtime import Runtime

method = Runtime.get().load_program("model.pte").load_method("forward")
(logits,) = method.execute([images[:1].contiguous()])  # one image at a time""",
}


def model_card(facts: Mapping[str, Any], file_bytes: int) -> str:
    """Return a model card in Markdown; facts that are missing are left out.

    These facts are printed: `model`, `dataset`, `study`, `trial`, `seed`, `epochs`; `score` under its own name,
    `score_name`, and `metrics` (name to value), of `val_n` images; of a sketch (`status`), which was never trained,
    `init_score` alone; `test_metrics` of `test_n`, the file's own; `differing`, the number
    of validation images for which the file gives another class than the packed model, and `own_process`, whether a
    process of its own read the file; `same_file`, whether a trial that was trained again gave the same bits; `seeds`
    and, if there are several, the columns of `results.analysis.confidence` over them; `size_bytes`, `flops`,
    `parameters`; `latency_ms` and `latency_b64_ms` that the search took, with `latency_runtime`, `latency_threads` and
    `latency_device`; `bench`, times of this file and the uncompressed network's, as `search.export.timing` returns it;
    `emulated`, whether inputs are rounded in floating point; `int8`, whether
    layers compute in it; the blocks (`blocks` as the ledger has them, or
    `config`); `uncounted`, the operators whose products are not in `flops`; `image_size`, `channels`, `mean`, `std`,
    `pixels` (`float32` if images were floats already), `classes`; what `spec` says of resizing the images of its
    `data`; `file_format` of the file of `file_bytes` bytes, and `file_options`, such as `dense`. A metric is a share of
    the images, except one whose name ends with `_loss`.
    """
    lines = [*_title(facts), *_accuracy(facts), *_costs(facts, file_bytes), *_network(facts), *_loading(facts)]
    return "\n".join(lines) + "\n"


def _title(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {_text(facts['model'])}, compressed by Overtone"
    yield ""
    names = ("model", "dataset", "study", "trial", "seed", "epochs")
    yield from (f"- {name}: {_code(facts[name])}" for name in names if name in facts)


def _accuracy(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Accuracy", "")
    validation = dict(facts.get("metrics") or {})
    if facts.get("score") is not None:
        validation = {facts["score_name"]: facts["score"], **validation}
    if _is_sketch(facts):
        validation = {init_name(facts["score_name"]): facts["init_score"]}
    for metrics, n in ((validation, facts.get("val_n")), (facts.get("test_metrics") or {}, facts.get("test_n"))):
        for name, value in metrics.items():
            if value is not None and not _is_certain(name, facts["classes"]):
                yield f"- {_code(name)}: {f'{value:.4f}' if name.endswith('_loss') else _share(value, n)}"
    yield ""
    if facts.get("differing") is not None:
        yield _agreement(facts)
    if facts.get("same_file") is False:
        yield "This is the trial trained again: another file than the search measured, with figures of its own."
    if _is_sketch(facts):
        yield "Calibrated and never trained: a sketch, whose figures are those before any fine-tuning. The intervals"
        yield "are about the number of images alone."
    elif facts.get("seeds", 1) > 1:
        yield from _over_seeds(facts)
    else:
        yield f"One training run of a single seed. The search chose by {_score_name(facts)}, so that figure is"
        yield "optimistic; the intervals are about the number of images alone."


def _is_sketch(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("status") == TrialStatus.SKETCH)


def _is_certain(name: str, classes: int) -> bool:
    """Return whether a metric is of the best K classes, out of no more than K."""
    best = re.search(r"_top(\d+)$", name)
    return best is not None and 1 < classes <= int(best[1])


def _score_name(facts: Mapping[str, Any]) -> str:
    return _code(facts.get("score_name", "score"))


def _agreement(facts: Mapping[str, Any]) -> str:
    differing, n = facts["differing"], facts["val_n"]
    where = "in a process of its own" if facts.get("own_process", True) else "back with the network's own code"
    own = " Figures of the test images are this file's own." if facts.get("test_metrics") else ""
    start = f"Read {where}, this file gave the packed model's class for"
    if not differing:
        return f"{start} all {n:,} validation images.{own}"
    order = "other runtimes add in another order, which can turn the rounding of an input held in few bits"
    return f"{start} {n - differing:,} of {n:,} validation images: {order}.{own}"


def _over_seeds(facts: Mapping[str, Any]) -> Iterator[str]:
    name = _score_name(facts)
    mean, low, high, repeats = (f"{100 * facts[f'score_{key}']:.2f}" for key in ("mean", "low", "high", "repeats"))
    yield f"Trained with {facts['seeds']} seeds, of which this is the first, the network has a mean {name} of"
    yield f"{mean} % (95 % interval of Student's t over the seeds, {low} to {high} %). The search chose this run by its"
    yield f"{name}, which favors lucky runs; the mean over the other seeds alone is {repeats} %."
    yield "The Wilson intervals are about the number of images alone."


def _share(fraction: float, n: int | None) -> str:
    if not n:
        return percent(fraction)
    low, high = wilson_interval(fraction, n)
    return f"{percent(fraction)} of n = {n:,} images (95 % Wilson interval {100 * low:.2f} to {100 * high:.2f} %)"


def _costs(facts: Mapping[str, Any], file_bytes: int) -> Iterator[str]:
    yield from ("", "## Size and compute", "")
    if facts.get("size_bytes") is not None:
        yield f"- packed size: {format_kilobytes(facts['size_bytes'], ',.2f')} (kB = 1,000 bytes)"
    if facts.get("flops") is not None:
        flops = format_flops(facts["flops"], ",.3f")
        yield f"- compute: {flops} an image (2 x multiply-accumulates){_uncounted(facts)}"
    if facts.get("parameters") is not None:
        yield f"- parameters: {facts['parameters']:,}"
    for key, batch in (("latency_ms", 1), ("latency_b64_ms", 64)):
        if facts.get(key) is not None:
            place = format_place(*(facts[f"latency_{name}"] for name in ("runtime", "threads", "device")))
            yield f"- latency at batch {batch} when it was searched: {facts[key]:.3g} ms in {_text(place)}"
    yield f"- this file: {format_kilobytes(file_bytes, ',.2f')}"
    if facts.get("bench"):
        yield from _times(facts["bench"])
    if facts.get("int8"):
        bits = " (filters of 7 bits in this file)" if "seven_bits" in facts.get("file_options", ()) else ""
        yield f"- layers compute in int8{bits}, which changes neither size nor compute as they are counted here; ONNX"
        yield "  files run it in integer kernels, PyTorch emulates it"
    if facts.get("emulated"):
        yield "- inputs of layers are rounded to few bits (`activation_bits`); floating-point arithmetic emulates that,"
        yield "  which saves no time"
    if facts["file_format"] == "onnx":
        yield ""
        yield _contents(facts)


def _contents(facts: Mapping[str, Any]) -> str:
    """Return what the file holds of the filters."""
    options = facts.get("file_options", ())
    if facts["file_format"] != "onnx" or "dense" in options:
        return "This file holds the filters rebuilt to float32 weights; the packed safetensors file is the small one."
    runtimes = "ONNX Runtime and OpenVINO rebuild" if "inline" in options else "ONNX Runtime rebuilds"
    return f"This file holds the packed tensors; {runtimes} the filters from them when loading it."


def _times(bench: Mapping[str, Any]) -> Iterator[str]:
    """Yield what this file and the uncompressed network's take, measured by turns."""
    this, whole = bench["file"], bench["uncompressed"]
    yield f"- the uncompressed network's file: {format_kilobytes(whole['bytes'], ',.2f')}"
    for batch, ms in this["latency_ms"].items():
        ratio = bench["ratios"][batch]
        yield (
            f"- time at batch {batch}: {ms:.3g} ms, the uncompressed network {whole['latency_ms'][batch]:.3g} ms; "
            f"ratio {ratio['ratio']:.2f} (95 % interval {ratio['low']:.2f} to {ratio['high']:.2f})"
        )
    versions = ", ".join(f"{name} {version}" for name, version in bench["versions"].items())
    yield ""
    yield f"Times are medians over turns in {_text(format_place(bench['runtime'], bench['threads'], bench['device']))}"
    yield f"({_text(versions)})."


def _uncounted(facts: Mapping[str, Any]) -> str:
    names = facts.get("uncounted")
    return f", without the products of {', '.join(map(_code, names))}" if names and isinstance(names, list) else ""


def _network(facts: Mapping[str, Any]) -> Iterator[str]:
    blocks = facts.get("blocks")
    if not isinstance(blocks, list):
        blocks = block_records(facts.get("config") or {})
    if blocks:
        yield from ("", "## Network, block by block", "")
        yield from (f"- {_text(format_block(block))}" for block in blocks)


def _loading(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Loading", "")
    size = facts.get("image_size")
    shape = "x".join(map(str, size)) if isinstance(size, list | tuple) else f"{size}x{size}"
    batch = f"float32 (batch, {facts['channels']}, height, width)" + (f" of {shape} pixels" if size else "")
    yield f"`images` are {batch}; `logits` are (batch, {facts['classes']})."
    spec = facts.get("spec")
    data = spec.get("data") if isinstance(spec, dict) else None
    if isinstance(data, dict) and data.get("image_size"):
        length = f" to {_text(data['resize_size'])} at their shorter side" if data.get("resize_size") else ""
        yield f"Resize images{length} ({_text(data.get('interpolation') or 'bilinear')}), then crop their center."
    if facts.get("mean") and facts.get("std"):
        mean, std = ([round(float(value), 6) for value in facts[key]] for key in ("mean", "std"))
        scaled = "Take the floats of the data set" if facts.get("pixels") == "float32" else "Scale pixels to [0, 1]"
        yield f"{scaled}, then subtract the mean {mean} and divide by the deviation {std}, by channel."
    example = _LOADING[facts["file_format"]]
    if ":" in str(facts["model"]) and facts["file_format"] == "safetensors":
        example = example.replace('load_model("model.safetensors")', 'load_model("model.safetensors", model=net)')
        yield "`net` is the uncompressed network, or its factory: it came from code outside Overtone."
    yield from ("", "```python", example, "```")


def _text(value: Any) -> str:
    """Return plain text on one line, in which nothing can become Markdown or HTML."""
    escaped = "".join(f"\\{char}" if char in r"\`*_[]#|!~" else char for char in " ".join(str(value).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(value: Any) -> str:
    return f"`{' '.join(str(value).split()).replace('`', chr(39))}`"
