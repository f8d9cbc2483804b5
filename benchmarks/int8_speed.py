"""Time and classes of a ResNet-20 in int8 in ONNX Runtime and OpenVINO, against float32 and ONNX Runtime's quantizer.

The uncompressed network is put into int8 with scales from 512 training images, without training, and written to ONNX.
Beside it stand its float32 file, and that file put through ONNX Runtime's own `quantize_static` (a scale a filter,
unsigned activations, least and largest values of the same images). All files take turns with one thread. Classes are
compared with what PyTorch gives for the same network, in int8 or float32, on the validation images.

    python benchmarks/int8_speed.py --data CIFAR10-FOLDER --weights RESNET20.safetensors
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from resnet20_trials import device, load_subject
from torch import Tensor, nn

from layers import LayerForm, compress_model
from spaces.portable.skeleton import make_skeleton
from trainers.evaluation import predict
from trainers.start.activations import scale_activations
from trainers.start.start import calibration_images

Run = Callable[[np.ndarray], Any]


def main() -> None:
    """Print times and classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--rounds", type=int, default=30)
    parser.set_defaults(train_limit=5_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, dense, network = load_subject(arguments)
    images = calibration_images(data, seed=0, device=torch.device("cpu"))
    model = compress_model(dense, dict.fromkeys(network.shapes, LayerForm(arithmetic="int8")))
    scale_activations(model, images)
    with tempfile.TemporaryDirectory() as folder:
        files = _write(Path(folder), dense, model.eval(), images)
        runs = {name: _onnxruntime(path) for name, path in files.items()}
        runs["int8 in OpenVINO"] = _openvino(files.pop("int8, for OpenVINO"))
        del runs["int8, for OpenVINO"]
    rows = torch.arange(len(data.val)).split(500)
    batches = [data.normalize(pixels).numpy() for pixels, _ in data.val.batches(rows, "cpu")]
    expected = {"float32": predict(dense, data.val, data.normalize, device="cpu")}
    expected["int8"] = predict(model, data.val, data.normalize, device="cpu")
    times = {size: _times(runs, batches[0][:size], arguments.rounds * (10 if size == 1 else 1)) for size in (1, 64)}
    versions = f"onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__}"
    turns = f"{10 * arguments.rounds} and {arguments.rounds} turns at batch 1 and 64"
    print(f"{device()}, 1 thread, {versions}; median ms of {turns}; of {len(data.val):,} images with another class")
    for name, run in runs.items():
        classes = torch.cat([torch.from_numpy(np.array(run(batch))).argmax(1) for batch in batches])
        differing = {kind: int((classes != other).sum()) for kind, other in expected.items()}
        cells = [
            f"{times[size][name]:.3f} ({times[size][name] / times[size]['float32']:.2f} x float32)" for size in times
        ]
        print(f"{name}: {', '.join(cells)}; other than PyTorch in {differing}")


def _write(folder: Path, dense: nn.Module, model: nn.Module, images: Tensor) -> dict[str, Path]:
    skeleton = make_skeleton(dense, (3, 32, 32))
    files = {
        "float32": skeleton.file(dense),
        "int8": skeleton.file(model),
        "int8, for OpenVINO": skeleton.file(model, inline=True, openvino=True),
    }
    paths = {name: folder / f"{number}.onnx" for number, name in enumerate(files)}
    for name, content in files.items():
        paths[name].write_bytes(content)
    quant_pre_process(str(paths["float32"]), str(folder / "prepared.onnx"))
    paths["int8 by quantize_static"] = folder / "static.onnx"
    quantize_static(
        str(folder / "prepared.onnx"),
        str(paths["int8 by quantize_static"]),
        _Images(images),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return paths


class _Images(CalibrationDataReader):
    def __init__(self, images: Tensor) -> None:
        self._pieces: Iterator[Tensor] = iter(images.split(128))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next piece of the images."""
        piece = next(self._pieces, None)
        return None if piece is None else {"images": piece.numpy()}


def _onnxruntime(path: Path) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"images": batch})[0]


def _openvino(path: Path) -> Run:
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings)
    return lambda batch: compiled(batch)[0]


def _times(runs: dict[str, Run], batch: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each run, taken by turns after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run(batch)
            if turn:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
