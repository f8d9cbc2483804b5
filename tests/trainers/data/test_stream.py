import gc
import os
import pickle
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace

import pytest
import torch

from layers.errors import OvertoneError
from trainers.data import stream
from trainers.data.dataset import Split
from trainers.data.stream import StreamedImages


@dataclass(frozen=True)
class Pixels:
    """Images of one color, the row's; those in bad are not there."""

    bad: tuple[int, ...] = ()
    pause: float = 0.0

    def read(self, row: int) -> bytes:
        time.sleep(self.pause)
        if row in self.bad:
            raise FileNotFoundError(2, os.strerror(2))
        return b"P6 4 3 255\n" + bytes([row % 256, row // 256, 7]) * 12

    def name(self, row: int) -> str:
        return f"image {row}"


def images(rows, **encoded) -> StreamedImages:
    return StreamedImages(encoded=Pixels(**encoded), rows=torch.as_tensor(rows), image_shape=(3, 3, 4), content="c")


def expected(rows) -> torch.Tensor:
    pixels = torch.tensor([[row % 256, row // 256, 7] for row in rows], dtype=torch.uint8)
    return pixels.view(-1, 3, 1, 1).expand(-1, 3, 3, 4)


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.fixture
def order(generator):
    """1000 images in any order, and batches of rows of them of several sizes."""
    rows = torch.randperm(1000, generator=generator)
    return rows, torch.randperm(1000, generator=generator)[:300].split([1, 100, 16, 17, 0, 166])


def test_rows_give_the_images_they_name(order):
    rows, batches = order
    found = images(rows)
    assert (len(found), found.shape) == (1000, (1000, 3, 3, 4))
    for batch in batches:
        read = found.read(batch)
        assert read.dtype == torch.uint8
        assert torch.equal(read, expected(rows[batch].tolist()))


@pytest.mark.parametrize("threads", [1, 3])
def test_reading_ahead_changes_nothing(order, threads, monkeypatch):
    monkeypatch.setattr(stream, "decode_threads", lambda *_: threads)
    rows, batches = order
    found = list(images(rows).read_ahead(batches))
    assert [len(batch) for batch in found] == [1, 100, 16, 17, 0, 166]
    assert torch.equal(torch.cat(found), expected(rows[torch.cat(batches)].tolist()))
    assert list(images(rows).read_ahead([])) == []


def test_a_few_batches_and_no_more_are_decoded_before_they_are_asked_for():
    seen = []

    class Watched(Pixels):
        def read(self, row: int) -> bytes:
            seen.append(row)
            return super().read(row)

    found = replace(images(range(64)), encoded=Watched())
    with closing(found.read_ahead(torch.arange(64).split(8))) as batches:
        for taken in (1, 2):
            next(batches)
            deadline = time.monotonic() + 20
            while len(seen) < 8 * (taken + 2) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert sorted(seen) == list(range(8 * (taken + 2)))


def test_threads_end_when_all_is_read():
    list(images(range(64)).read_ahead(torch.arange(64).split(8)))
    assert decoders() == []


def test_threads_end_when_the_consumer_stops_early():
    before = time.monotonic()
    with closing(images(range(640), pause=0.005).read_ahead(torch.arange(640).split(64))) as batches:
        next(batches)
        assert decoders() != []
    assert decoders() == []
    assert time.monotonic() - before < 640 * 0.005  # what was waiting is not decoded any more


def test_threads_end_when_the_consumer_raises():
    split = Split(images=images(range(640)), labels=torch.arange(640))

    def consume() -> None:
        for _ in split.batches(torch.arange(640).split(64), "cpu"):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as error:
        consume()
    del error
    gc.collect()
    assert decoders() == []


def test_an_image_that_cannot_be_used_is_named_and_ends_all_threads():
    found, seen = images(range(100, 200), bad=(150,)), []
    with pytest.raises(OvertoneError, match=r"^image 150 cannot be read \(No such file or directory\); without stream"):
        seen.extend(found.read_ahead(torch.arange(100).split(20)))
    assert len(seen) == 2  # the batches before it
    assert decoders() == []
    with pytest.raises(OvertoneError, match=r"^image 150 "):
        found.read(torch.tensor([50]))
    assert len(found.read(torch.tensor([49, 51]))) == 2


def test_a_wrong_size_is_named():
    found = replace(images(range(3)), image_shape=(3, 5, 5))
    with pytest.raises(OvertoneError, match=r"^image 0 measures 4x3 where the first measures 5x5"):
        found.read(torch.tensor([0]))


def test_the_identity_is_that_of_content_and_rows(order):
    rows, _ = order
    one = images(rows)
    assert one.identity == images(rows.clone()).identity
    assert one.identity != images(rows.flip(0)).identity
    assert one.identity != replace(one, content="d").identity


def test_it_pickles_as_where_the_images_are(order):
    rows, batches = order
    copy = pickle.loads(pickle.dumps(images(rows)))
    assert torch.equal(copy.read(batches[1]), images(rows).read(batches[1]))
    assert copy.identity == images(rows).identity
