"""Processor time of a verified export of a ResNet-20, the command's and that of the processes that it starts.

Each of the forms is a trial of one short epoch, made once without Ray and left in the store of a temporary folder. Then
`overtone export` writes it to ONNX, in a process of its own, as often as is asked. The images are 5,000 to validate and
5,000 to test.

    python benchmarks/export_seconds.py --data CIFAR10-FOLDER --weights RESNET20.safetensors [--repeats 3]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from resnet20_trials import device

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.study.plan import StudyPlan
from search.study.record import finished_row
from search.study.workload import Workload
from spaces import BlockConfig, NetworkConfig
from trainers.data import DataSpec
from trainers.trial import run_trial

_SERIES = {"basis": "cosine", "harmonics": (2, 2), "bits": 6, "exponent_block": 16}
_FORMS = {"float": BlockConfig(**_SERIES), "int8": BlockConfig(**_SERIES, arithmetic="int8")}  # type: ignore[arg-type]


def main() -> None:
    """Print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime"], help="onnxruntime, openvino")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _make_study(Path(folder), arguments)
        for runtime in arguments.runtimes:
            for form in _FORMS:
                taken = [_export(Path(folder), form, f"{runtime}-{form}-{i}") for i in range(arguments.repeats)]
                print(
                    f"{form}, {runtime}: {median(taken):.1f} s ({min(taken):.1f} to {max(taken):.1f}, "
                    f"n = {len(taken)}), {device()}, 1 thread, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


def _make_study(folder: Path, arguments: argparse.Namespace) -> None:
    spec = DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=512)
    plan = StudyPlan(model="resnet20", weights=arguments.weights, data=spec, epochs=1, trials=len(_FORMS))
    ledger, workload = Ledger(Store(folder / "runs")), Workload.load(plan)
    record = {**plan.to_record(), **workload.identity(), "uncompressed": workload.reference(), "warm_started": 0}
    ledger.create_study("s", record)
    for number, (name, block) in enumerate(_FORMS.items()):
        config = NetworkConfig(blocks=dict.fromkeys(workload.network.blocks, block))
        trial_spec = plan.spec(config, **workload.hashes())
        trial = run_trial(trial_spec, workload.data, "cpu", on_epoch=lambda epoch: None)
        trial.save(folder / "model.safetensors")
        report = {
            "result": json.dumps(trial.result().to_json()),
            "started": datetime.now(UTC).isoformat(),
            "device": "cpu",
            "threads": 1,
        }
        suggestion = {"trial": name, "number": number, "spec": trial_spec.to_json()}
        ledger.append(finished_row("s", suggestion, report, ledger.put_model(folder / "model.safetensors")))


def _export(folder: Path, trial: str, out: str) -> float:
    """Return the seconds of user and system time."""
    before = _children_seconds()
    runtime = ["--runtime", "openvino"] if out.startswith("openvino") else []
    command = [sys.executable, "-m", "search", "export", "--study", "s", "--pick", trial, "--format", "onnx", *runtime]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    places = ["--store", str(folder / "runs"), "--out", str(folder / out)]
    subprocess.run([*command, *places], env=environment, stdout=subprocess.DEVNULL, check=True)
    return _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
