"""Image sets small enough to be decoded in a moment, and a disk that is soon full."""

import io
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _pixels(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def parquet_set(tmp_path: Path) -> Path:
    """Two training shards of 70 and 50 and one test shard of 40 PNGs, 6x6, three classes, row groups of 16."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for seed, (name, count) in enumerate({"train-0": 70, "train-1": 50, "test-0": 40}.items()):
        rows = [{"bytes": _png(_pixels(1000 * seed + i, 6, 6)), "path": f"{i}.png"} for i in range(count)]
        table = pa.table({"img": pa.array(rows, struct), "label": pa.array([i % 3 for i in range(count)])})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=16)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Three classes of 40 training and 10 test PNGs of several sizes."""
    folder = tmp_path / "images"
    for part, count in (("train", 40), ("val", 10)):
        for number, label in enumerate(("cat", "dog", "emu")):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = _pixels(1000 * number + i + 500 * (part == "val"), 10 + i % 3, 9 + i % 5)
                (folder / part / label / f"{i:02}.png").write_bytes(_png(pixels))
    return folder


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Within what it gives no file of this process can grow past 10 kB; not around a test, whose log is a file too."""

    @contextmanager
    def full() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full
