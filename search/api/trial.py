"""A trial as its user holds it: its figures, its network, its export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.ledger.ledger import Ledger
from results.objectives import init_name
from results.schema import TrialStatus
from search.study.objects import NO_OBJECTS, Objects
from search.study.places import RECORDED, Places
from search.study.record import network_config

if TYPE_CHECKING:
    import os

    from torch import nn

    from spaces import NetworkConfig
    from trainers.data.objects import ImageObjects

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """One trial of a study."""

    ledger: Ledger
    study: str
    row: Mapping[str, Any]
    """The trial's row of the ledger, as `docs/queries.md` describes it."""
    objects: Objects = NO_OBJECTS
    """Network and images of a study that was begun with objects, as the `Study` has them."""
    places: Places = RECORDED
    """Where weights and data are, as the `Study` has it."""

    def __repr__(self) -> str:
        score = "no score" if self.score is None else f"{self.row['score_name']} {self.score:.4f}"
        if self.status == TrialStatus.SKETCH:
            score = f"{init_name(self.row['score_name'])} {self.init_score:.4f}, never trained"
        return f"Trial({self.id!r} of {self.study!r}: {self.status}, {score}, {self.size_bytes:,} bytes)"

    @property
    def id(self) -> str:
        """The id, ten hexadecimal digits of the trial's identity."""
        return str(self.row["trial"])

    @property
    def status(self) -> str:
        """`finished`, `pruned` (stopped early), `failed`, or `sketch` (calibrated, never trained)."""
        return str(self.row["status"])

    @property
    def score(self) -> float | None:
        """The score, in [0, 1]; None unless the trial finished."""
        return None if self.row["score"] is None else float(self.row["score"])

    @property
    def init_score(self) -> float | None:
        """The score before training, in [0, 1]; None for a trial that failed before."""
        return None if self.row["init_score"] is None else float(self.row["init_score"])

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the validation split by name, after the last epoch."""
        return dict(self.row["metrics"] or {})

    @property
    def size_bytes(self) -> int:
        """Bytes of the packed model."""
        return int(self.row["size_bytes"])

    @property
    def flops(self) -> int:
        """Arithmetic for one image, 2 x multiply-accumulates."""
        return int(self.row["flops"])

    @property
    def config(self) -> NetworkConfig:
        """How each block of the network is compressed."""
        return network_config(self.row)

    def load(self, *, model: nn.Module | None = None) -> nn.Module:
        """Return the compressed network in evaluation mode, with the weights that were measured.

        It takes normalized images. `model` is the uncompressed network, if the study was begun with an object and this
        trial does not have it. Raises `OvertoneError` if the trial's model was not kept.
        """
        from search.export.reader import factory_of
        from search.export.verify import check_model
        from spaces import load_model

        name = str(self.row["model"])
        objects = Objects(model=model).or_else(self.objects)
        objects.check(model=name)
        check_model(self.ledger, self.study, self.row)
        own = factory_of(name) if objects.model is None else objects.model
        return load_model(self.ledger.model_path(self.row["model_sha256"]), model=own)

    def export(
        self,
        out: str | os.PathLike[str],
        format: str = "safetensors",
        *,
        inline: bool = False,
        dense: bool = False,
        runtime: str | None = None,
        rerun: bool = False,
        device: str | None = None,
        progress: bool = True,
        model: nn.Module | None = None,
        data: ImageObjects | None = None,
    ) -> dict[str, Any]:
        """Write the model, `config.json` and a model card into the new folder `out`; return the card's facts.

        `format` is safetensors (packed), onnx, pt2 or pte. The file is read back and must give the trial's predictions
        on the validation images. ONNX holds the packed tensors, and functions that decode them when it is loaded:
        `inline` writes them out, for runtimes that take no functions, and `dense` holds float32 filters, for those that
        compute nothing beforehand. It is verified in `runtime`, onnxruntime or openvino, where layers are timed to
        choose their graphs; by default where the study takes latency. With `rerun` a trial whose model was not kept is
        trained again, on `device` (default: a GPU if there is one). `model` and `data` are needed as in `load`. Raises
        `OvertoneError`, leaving no folder behind, if that fails.
        """
        from search.export.verify import export_trial
        from search.runner.progress import make_console
        from spaces.portable import WriteOptions
        from trainers.runtime.device import default_device, parse_device

        console = make_console(progress)
        timed_in = "openvino" if format == "onnx" and self.row.get("latency_runtime") == "openvino" else None
        return export_trial(
            self.ledger,
            self.study,
            self.row,
            format=format,
            out=Path(out),
            options=WriteOptions(inline=inline, dense=dense, runtime=runtime or timed_in),
            rerun_on=parse_device(device or default_device()) if rerun else None,
            objects=Objects(model=model, data=data).or_else(self.objects),
            places=self.places,
            log=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
        )
