"""Export a trial of the ledger, and verify the exported file before the export counts as done.

The file is read back in a process of its own. It must give every validation image the class that the trial's packed
model gives, whose score and size must be the ledger's. Other runtimes add in another order, which now and then turns
the rounding of an input held in few bits: onnx and pt2 may differ for few images. The figures of the test split, which
is read once, are the file's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError, compressed_layers
from layers.errors import first_line
from layers.integer.network import int8_layers
from results.export.export import export_model
from results.ledger.ledger import Ledger
from search.export.facts import MAX_DISAGREEMENT, card_facts, test_facts
from search.export.reader import check_reader, factory_of, logits_in_subprocess
from search.export.rerun import rerun_trial
from search.export.timing import time_export
from search.study.objects import NO_OBJECTS, Objects
from search.study.places import RECORDED, Places
from search.study.workload import load_images
from spaces import load_model
from spaces.models import is_object
from spaces.portable import PLAIN, WriteOptions, check_format, shared_graphs
from trainers.data import Data
from trainers.evaluation import predict_logits
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec

__all__ = ["check_model", "export_trial"]

_NOTHING = ": nothing was written"
_TIE = 1e-4
"""Share of the largest logit that two others may differ by and count as equal: float32, added in another order."""


def export_trial(
    ledger: Ledger,
    study: str,
    row: Mapping[str, Any],
    *,
    format: str,
    out: Path,
    options: WriteOptions = PLAIN,
    rerun_on: torch.device | None = None,
    objects: Objects = NO_OBJECTS,
    places: Places = RECORDED,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the trial of a row to the folder `out`, verified; return the facts of its card.

    If its model was not kept it is trained again on the device `rerun_on`; `log` is given lines about that. `places`
    are those of weights and data, if they moved; `options` are those of `spaces.portable.write`. Raises
    `OvertoneError`, leaving no folder behind, if there is no model, the data changed, or the file does not give the
    trial's predictions.
    """
    check_format(format, options)
    check_reader(format, options.runtime or "onnxruntime")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out (={str(out)!r}) must be a new or empty folder")
    check_model(ledger, study, row, rerun=rerun_on is not None)
    keep_freed_memory()
    spec = TrialSpec.from_json(json.loads(row["spec"]))
    objects.check(model=spec.model)
    with places.hinted("", spec.data):
        data = load_images(places.of_data(spec.data), objects=objects)
    if data.fingerprint != spec.data_fingerprint:
        raise OvertoneError(
            f"cannot verify trial {row['trial']}: the data {spec.data.name!r} are not those that it ran on"
        )
    checkpoint = Path(f"{os.path.abspath(out)}.checkpoint")
    own = factory_of(spec.model) if objects.model is None else objects.model
    with _packed_model(ledger, row, data, rerun_on, objects, places, checkpoint, log) as (packed, row):
        model = load_model(packed, model=own)
        logits = predict_logits(model, data.val, data.normalize, device="cpu")
        card = card_facts(ledger, study, row, spec, data, logits)
        verified: dict[str, Any] = {}

        runtime = options.runtime or "onnxruntime"

        def verify(file: Path) -> Mapping[str, Any]:
            verified.update(_verify(file, row, spec.model, logits, data, objects, runtime, rounds=_rounds(model)))
            verified.update(time_export(file, format, spec, data, own, options.runtime))
            return verified

        def export(options: WriteOptions) -> None:
            export_model(packed, out, format=format, card=card, model=own, prove=verify, options=options)

        with shared_graphs():
            try:
                export(options)
            except OvertoneError as error:
                saturates = format == "onnx" and runtime == "onnxruntime" and int8_layers(model)
                if not saturates or options.seven_bits:
                    raise
                reason = first_line(error).removesuffix(_NOTHING)
                log(f"{reason}; once more with filters of 7 bits, whose products do not saturate")
                verified.clear()
                export(replace(options, seven_bits=True))
    return {**card, **verified}


def check_model(ledger: Ledger, study: str, row: Mapping[str, Any], *, rerun: bool = False) -> None:
    """Raise `OvertoneError` if the store has no packed model of a row's trial, unless `rerun` can make it again."""
    if row["model_sha256"] is None:
        raise OvertoneError(f"trial {row['trial']} of study {study!r} has no model: it {row['status']}")
    if not rerun and not ledger.has_model(row["model_sha256"]):
        reason = "was not kept (--keep front)" if ledger.study(study)["keep"] == "front" else "is not in the store"
        epochs = f"{row['epochs']} epoch{'' if row['epochs'] == 1 else 's'}"
        raise OvertoneError(
            f"the model of trial {row['trial']} {reason}: add --rerun (rerun=True) to train it again, {epochs}"
        )


@contextmanager
def _packed_model(
    ledger: Ledger,
    row: Mapping[str, Any],
    data: Data,
    rerun_on: torch.device | None,
    objects: Objects,
    places: Places,
    checkpoint: Path,
    log: Callable[[str], None],
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the packed model, kept or trained again, and its row."""
    if rerun_on is None or ledger.has_model(row["model_sha256"]):
        yield ledger.model_path(row["model_sha256"]), row
        return
    rerun = rerun_trial(
        ledger,
        row,
        data,
        objects.model,
        places,
        device=rerun_on,
        checkpoint=checkpoint,
        tolerance=MAX_DISAGREEMENT,
        log=log,
    )
    with rerun as (packed, changes):
        yield packed, {**row, **changes}


def _verify(
    file: Path,
    row: Mapping[str, Any],
    model: str,
    logits: Tensor,
    data: Data,
    objects: Objects,
    runtime: str,
    *,
    rounds: bool,
) -> dict[str, Any]:
    """Return `differing`, for how many validation images the exported file gives another class than the model.

    `logits` are those of the model of this name, `rounds` says whether it rounds activations. `own_process` says
    whether a process of its own read the file: it cannot build a network that was given as an object, whose packed file
    is read here. The same number bounds how many images are right in one and wrong in the other, and so the difference
    in accuracy. `test_metrics` are the file's own. Raises `OvertoneError` if too many differ, or the file holds
    another number of bytes than the row.
    """
    format = file.suffix[1:]
    if format == "safetensors" and (size := _payload_bytes(file)) != row["size_bytes"]:
        raise OvertoneError(
            f"the exported safetensors holds {size} bytes of tensors, size_bytes of trial {row['trial']} is "
            f"{row['size_bytes']}{_NOTHING}"
        )
    own_process = not (format == "safetensors" and is_object(model))
    if own_process:
        found, of_test = logits_in_subprocess(file, model, data, runtime)
    else:
        again = load_model(file, model=objects.model)
        found, of_test = (predict_logits(again, s, data.normalize, device="cpu") for s in (data.val, data.test))
    read = found.argmax(1)
    differing = int((logits.argmax(1) != read).sum())
    if differing > (MAX_DISAGREEMENT * len(read) if format != "safetensors" else 0) or not (
        rounds or _are_ties(logits, read)
    ):
        raise OvertoneError(
            f"the exported {format} gives another class than trial {row['trial']} for {differing} of "
            f"{len(data.val)} validation images{_NOTHING}"
        )
    return {"differing": differing, "own_process": own_process, **test_facts(of_test, data)}


def _rounds(model: nn.Module) -> bool:
    """Return whether a network rounds activations, so that the order of additions can turn its outputs."""
    forms = [layer.form for layer in compressed_layers(model).values()]
    return any(form.activation_format is not None or form.arithmetic != "float" for form in forms)


def _are_ties(logits: Tensor, classes: Tensor) -> bool:
    """Return whether these classes have the highest of the logits (n, classes), up to the rounding of float32."""
    given = logits.gather(1, classes[:, None])[:, 0]
    return bool((logits.amax(1) - given <= _TIE * logits.abs().amax(1)).all())


def _payload_bytes(file: Path) -> int:
    """Return the bytes of a safetensors file's tensors: all but the header's length, which takes 8, and the header."""
    with open(file, "rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
