import pickle
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from layers.errors import UsageError
from trainers.data import Data, DataSpec, load_data
from trainers.data.dataset import Split
from trainers.data.stream import StreamedImages


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[torch.uint8, torch.float32])
def plain(request, generator) -> Split:
    images = torch.randint(256, (50, 3, 5, 6), generator=generator).to(request.param)
    return Split(images=images, labels=torch.randint(9, (50,), generator=generator))


@pytest.fixture(params=["parquet", "imagefolder"])
def both(request) -> tuple[Data, Data]:
    """The same set in memory and streamed."""
    if request.param == "parquet":
        spec = DataSpec(name=f"parquet:{request.getfixturevalue('parquet_set')}", train_limit=100)
    else:
        spec = DataSpec(name=f"imagefolder:{request.getfixturevalue('image_folder')}", image_size=7, train_limit=100)
    return load_data(spec), load_data(replace(spec, stream=True))


def test_take_and_batches_are_indexing(plain, generator):
    rows = torch.randperm(50, generator=generator)
    assert plain.image_shape == (3, 5, 6)
    assert torch.equal(plain.take(rows[:7]), plain.images[rows[:7]])
    found = list(plain.batches(rows.split(20), "cpu"))
    assert [len(images) for images, _ in found] == [20, 20, 10]
    assert torch.equal(torch.cat([images for images, _ in found]), plain.images[rows])
    assert torch.equal(torch.cat([labels for _, labels in found]), plain.labels[rows])
    with closing(plain.batches(rows.split(20), "cpu")) as batches:
        next(batches)


def test_streamed_images_are_those_in_memory(both, generator):
    memory, streamed = both
    assert isinstance(streamed.train.images, StreamedImages)
    assert isinstance(streamed.val.images, torch.Tensor)
    assert (len(streamed.train), streamed.train.image_shape) == (100, memory.train.image_shape)
    assert (streamed.channels, streamed.image_size) == (memory.channels, memory.image_size)
    rows = torch.randperm(100, generator=generator)
    assert torch.equal(streamed.train.take(rows), memory.train.take(rows))
    pairs = zip(streamed.train.batches(rows.split(33), "cpu"), memory.train.batches(rows.split(33), "cpu"), strict=True)
    for one, other in pairs:
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for name in ("val", "test"):
        assert torch.equal(getattr(streamed, name).images, getattr(memory, name).images)
        assert torch.equal(getattr(streamed, name).labels, getattr(memory, name).labels)


def test_a_stream_stays_where_it_is(both):
    _, streamed = both
    assert streamed.train.to("meta") is streamed.train
    assert streamed.val.to("meta").images.device.type == "meta"


def test_a_streamed_fingerprint_is_that_of_files_rows_and_labels(both):
    memory, streamed = both
    assert streamed.fingerprint != memory.fingerprint
    assert streamed.fingerprint == replace(streamed).fingerprint
    train = streamed.train
    for other in (
        replace(train, images=replace(train.images, content="else")),
        replace(train, images=replace(train.images, rows=train.images.rows.flip(0))),
        replace(train, labels=train.labels.flip(0)),
        replace(train, images=replace(train.images, image_shape=(3, 9, 9))),
    ):
        assert replace(streamed, train=other).fingerprint != streamed.fingerprint


def test_streamed_data_pickle(both):
    _, streamed = both
    copy = pickle.loads(pickle.dumps(streamed))
    assert copy.fingerprint == replace(copy).fingerprint == streamed.fingerprint
    assert torch.equal(copy.train.take(torch.arange(100)), streamed.train.take(torch.arange(100)))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        *((torch.zeros(2, 3, 4, 4, dtype=dtype), torch.zeros(2).long()) for dtype in (torch.int64, torch.float64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long()),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long()),
    ],
)
def test_a_split_takes_bytes_or_floats_with_a_label_each(images, labels):
    with pytest.raises(UsageError, match=r"must be uint8 or float32 \(n, C, H, W\)"):
        Split(images=images, labels=labels)


def test_a_stream_needs_a_label_each(both):
    with pytest.raises(
        UsageError, match=r"3, \d, \d\)\) must be uint8 or float32 .* labels \(=\(99,\)\) must be \(n,\)"
    ):
        replace(both[1].train, labels=torch.zeros(99).long())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_reach_a_gpu(both, plain):
    memory, streamed = both
    rows = torch.randperm(100, device="cuda").split(9)
    expected = [(memory.train.images[batch.cpu()], memory.train.labels[batch.cpu()]) for batch in rows]
    for split in (streamed.train, memory.train, memory.train.to("cuda")):
        for (images, labels), (wanted, numbers) in zip(split.batches(rows, "cuda"), expected, strict=True):
            assert images.is_cuda
            assert labels.is_cuda
            assert torch.equal(images.cpu(), wanted)
            assert torch.equal(labels.cpu(), numbers)
