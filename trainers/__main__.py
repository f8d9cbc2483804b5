"""`python -m trainers spec.json`: one trial from its spec file, without Ray and Optuna."""

import argparse
import json
import sys
import warnings
from pathlib import Path

from layers import OvertoneError, OvertoneWarning, UsageError
from layers.errors import first_line
from layers.files import discard_output
from trainers.data import load_data
from trainers.runtime.device import default_device, keep_freed_memory, parse_device
from trainers.score import SCORE_NAME
from trainers.spec import TrialSpec
from trainers.training.loop import Epoch
from trainers.trial import Trial, TrialResult, run_trial


def main() -> int:
    """Run the trial of a spec file and print its result as JSON; 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m trainers", description=main.__doc__)
    parser.add_argument("spec", type=Path, help="JSON file of a TrialSpec; the column `spec` of a ledger row is one")
    parser.add_argument("--out", type=Path, help="write the packed model to this .safetensors file")
    parser.add_argument("--checkpoint", type=Path, help="save the trial to this file after each epoch, and resume it")
    parser.add_argument("--device", default=default_device(), help="cpu, cuda, cuda:1")
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("always", OvertoneWarning)
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    try:
        spec = json.loads(arguments.spec.read_text())
    except (OSError, ValueError, RecursionError) as error:
        print(f"spec (={str(arguments.spec)!r}) must be a readable JSON file: {first_line(error)}", file=sys.stderr)
        return 2
    try:
        result = _run(TrialSpec.from_json(spec), arguments.device, arguments.out, arguments.checkpoint)
    except OvertoneError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        print(f"cannot use {error.filename or 'a file'}: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the checkpoint, if one is named", file=sys.stderr)
        return 1
    try:
        print(json.dumps(result.to_json(), indent=2), flush=True)
    except OSError as error:
        discard_output()
        print(f"cannot write the answer: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


def _run(spec: TrialSpec, device: str, out: Path | None, checkpoint: Path | None) -> TrialResult:
    def report_start(trial: Trial) -> None:
        resumed = f", resumed after epoch {len(trial.history)}" if trial.history else ""
        print(f"start: {SCORE_NAME} {trial.initial.top1:.4f}{resumed}", file=sys.stderr)

    def report_epoch(epoch: Epoch) -> None:
        measured = f"train_loss {epoch.train_loss:.4f}, {SCORE_NAME} {epoch.score:.4f}"
        print(f"epoch {epoch.epoch}/{spec.epochs}: {measured}", file=sys.stderr)

    place = parse_device(device)
    trial = run_trial(
        spec,
        load_data(spec.data),
        place,
        on_epoch=report_epoch,
        on_start=report_start,
        checkpoint=checkpoint,
    )
    if out is not None:
        trial.save(out)
    return trial.result()


if __name__ == "__main__":
    sys.exit(main())
