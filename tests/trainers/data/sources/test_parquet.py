import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from layers.errors import OvertoneError, UsageError
from trainers.data.manifest import read_manifest
from trainers.data.sources import parquet as parquet_module
from trainers.data.sources.parquet import parquet_source


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def images(seed: int, n: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def good(read):
    """The images of a reading in which nothing is wrong."""
    found, faults = read
    assert faults == {}
    return found


def write(path, encoded, labels, *, column="img", names=None, group=4):
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(rows, struct), "label": pa.array(labels, pa.int64())})
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)


@pytest.fixture
def folder(tmp_path):
    pixels = {"train-00000-of-00002": images(0, 11), "train-00001-of-00002": images(1, 6), "test-00000": images(2, 5)}
    for name, found in pixels.items():
        write(tmp_path / f"{name}.parquet", [png(image) for image in found], [i % 3 for i in range(len(found))])
    return tmp_path, np.concatenate([images(0, 11), images(1, 6)]), images(2, 5)


def test_rows_come_in_the_order_asked_across_files_and_row_groups(folder):
    path, train, test = folder
    source = parquet_source(str(path))
    rows = torch.randperm(17, generator=torch.Generator().manual_seed(0))[:12]
    assert torch.equal(good(source.read("train", rows)), torch.from_numpy(train).permute(0, 3, 1, 2)[rows])
    found = good(source.read("test", torch.tensor([4, 0])))
    assert torch.equal(found, torch.from_numpy(test).permute(0, 3, 1, 2)[[4, 0]])
    assert source.labels["train"].tolist() == [i % 3 for i in range(11)] + [i % 3 for i in range(6)]
    assert (source.classes, source.image_bytes) == (3, 192)


def test_the_column_may_be_called_image_and_metadata_name_the_classes(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}-0.parquet", [png(images(0, 1)[0])], [0], column="image", names=["a", "b", "c", "d"])
    assert parquet_source(str(tmp_path)).classes == 4


@pytest.mark.parametrize("metadata", [b"not json", b"[]", b'{"info": {"features": {"label": {"names": null}}}}'])
def test_foreign_metadata_are_passed_over(folder, metadata):
    path = folder[0] / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": metadata}), path)
    assert parquet_source(str(folder[0])).classes == 3


def test_only_the_images_asked_for_are_decoded(folder):
    path, train, _ = folder
    encoded = [png(image) for image in images(0, 11)]
    encoded[7] = b"rubbish"
    write(path / "train-00000-of-00002.parquet", encoded, [0] * 11)
    source = parquet_source(str(path))
    rows = torch.tensor([0, 6, 8, 16])
    assert torch.equal(good(source.read("train", rows)), torch.from_numpy(train).permute(0, 3, 1, 2)[rows])


def test_faulty_images_are_named_with_file_and_row_at_their_places(folder):
    encoded = [png(image) for image in images(1, 6)]
    encoded[2], encoded[4], encoded[5] = b"rubbish", None, png(images(3, 1, side=9)[0])
    write(folder[0] / "train-00001-of-00002.parquet", encoded, [0] * 6)
    source = parquet_source(str(folder[0]))
    found, faults = source.read("train", torch.arange(16, -1, -1))
    assert faults == {
        16 - 13: "train-00001-of-00002.parquet row 2 ('2.png') cannot be decoded",
        16 - 15: "train-00001-of-00002.parquet row 4 ('4.png') is empty",
        16 - 16: "train-00001-of-00002.parquet row 5 ('5.png') measures 9x9 where the first measures 8x8",
    }
    places = [place for place in range(17) if place not in faults]
    expected = torch.from_numpy(folder[1]).permute(0, 3, 1, 2).flip(0)
    assert torch.equal(found[places], expected[places])


def test_a_null_image_is_empty(folder):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array([None], struct), "label": pa.array([1])})
    pq.write_table(table, folder[0] / "test-00000.parquet")
    _, faults = parquet_source(str(folder[0])).read("test", torch.tensor([0]))
    assert faults == {0: "test-00000.parquet row 0 (None) is empty"}


def test_the_first_image_that_decodes_sets_the_size(folder):
    encoded = [b"rubbish", *(png(image) for image in images(0, 10))]
    write(folder[0] / "train-00000-of-00002.parquet", encoded, [0] * 11)
    assert parquet_source(str(folder[0])).image_bytes == 192


def test_nothing_decodable_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}-0.parquet", [b"rubbish"] * 3, [0, 1, 0])
    with pytest.raises(OvertoneError, match=r"none of the training images of 'parquet:.*' can be decoded"):
        parquet_source(str(tmp_path))


def test_no_training_rows_are_refused(folder):
    for path in folder[0].glob("train-*"):
        write(path, [], [])
    with pytest.raises(OvertoneError, match=r"the train-\*\.parquet of 'parquet:.*' have no rows"):
        parquet_source(str(folder[0]))


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    """The folder that encoded rows are kept in; no set is open yet."""
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    parquet_module._map_rows.cache_clear()
    return tmp_path / "cache"


def streamed(path, rows):
    return parquet_source(str(path)).stream(torch.as_tensor(rows), read_manifest("parquet", str(path)))


def test_streamed_rows_are_those_read_whatever_their_order(folder, cache_dir, generator):
    path, train, _ = folder
    rows = torch.randperm(17, generator=generator)
    found = streamed(path, rows)
    assert found.shape == (17, 3, 8, 8)
    order = torch.randperm(17, generator=generator)
    assert torch.equal(found.read(order), torch.from_numpy(train).permute(0, 3, 1, 2)[rows[order]])
    assert [file.suffix for file in cache_dir.iterdir()] == [".arrow"]


def test_encoded_rows_are_written_once_a_machine(folder, cache_dir, monkeypatch):
    streamed(folder[0], range(17))
    (file,) = cache_dir.iterdir()
    before = file.stat().st_mtime_ns
    parquet_module._map_rows.cache_clear()  # as in another process
    found = streamed(folder[0], range(17))
    assert file.stat().st_mtime_ns == before
    parquet_module._map_rows.cache_clear()
    file.unlink()  # as on another machine
    assert len(pickle.loads(pickle.dumps(found)).read(torch.arange(17))) == 17
    assert list(cache_dir.iterdir()) == [file]


def test_a_streamed_image_that_cannot_be_used_is_named_with_file_and_row(folder, cache_dir):
    encoded = [png(image) for image in images(1, 6)]
    encoded[2], encoded[4], encoded[5] = b"rubbish", None, png(images(3, 1, side=9)[0])
    write(folder[0] / "train-00001-of-00002.parquet", encoded, [0] * 6)
    found = streamed(folder[0], range(17))
    for row, fault in ((13, "cannot be decoded"), (15, "is empty"), (16, "measures 9x9 where the first measures 8x8")):
        with pytest.raises(
            OvertoneError, match=rf"^train-00001-of-00002\.parquet row {row - 11} {fault}; without stream"
        ):
            found.read(torch.tensor([0, row]))
    assert len(found.read(torch.tensor([0, 10, 11, 14]))) == 4


def test_a_set_that_changed_under_a_stream_is_refused(folder, cache_dir):
    found = streamed(folder[0], range(17))
    parquet_module._map_rows.cache_clear()
    write(folder[0] / "train-00002-of-00002.parquet", [png(images(0, 1)[0])], [0])
    with pytest.raises(OvertoneError, match=r"the files of 'parquet:.*' have changed since the set was opened"):
        found.read(torch.tensor([0]))


def test_encoded_rows_that_do_not_fit_are_refused(folder, cache_dir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OvertoneError, match=r"^cannot write the encoded images of .*, which stream needs: .*; OVERTONE_CACHE"
    ):
        streamed(folder[0], range(17))


def test_a_missing_folder_and_missing_parts_are_wrong_use(folder, tmp_path):
    with pytest.raises(UsageError, match="the folder '/no/such' of dataset 'parquet:/no/such' does not exist"):
        parquet_source("/no/such")
    (folder[0] / "test-00000.parquet").unlink()
    with pytest.raises(UsageError, match=r"has no test-\*\.parquet"):
        parquet_source(str(tmp_path))


def test_a_foreign_file_is_refused(folder):
    (folder[0] / "train-00000-of-00002.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(OvertoneError, match=r"train-00000-of-00002\.parquet' is not a readable Parquet file: "):
        parquet_source(str(folder[0]))


def test_a_file_that_breaks_off_inside_is_refused(folder):
    path = folder[0] / "test-00000.parquet"
    metadata = pq.ParquetFile(path).metadata
    images = next(c for c in (metadata.row_group(0).column(i) for i in range(3)) if c.path_in_schema == "img.bytes")
    content = bytearray(path.read_bytes())
    content[images.data_page_offset : images.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    source = parquet_source(str(folder[0]))
    with pytest.raises(OvertoneError, match=r"test-00000\.parquet' is not a readable Parquet file: "):
        source.read("test", torch.arange(5))


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"img": [b"x"], "label": [0]}),
        pa.table({"img": [{"bytes": b"x", "path": "p"}], "fine_label": [0]}),
        pa.table({"img": [{"bytes": b"x", "path": "p"}], "label": ["cat"]}),
        pa.table({"picture": [{"bytes": b"x", "path": "p"}], "label": [0]}),
    ],
)
def test_other_columns_are_named(folder, table):
    pq.write_table(table, folder[0] / "train-00000-of-00002.parquet")
    with pytest.raises(OvertoneError, match=r"has columns \w+, \w+; it must have 'img' or 'image' {bytes, path}"):
        parquet_source(str(folder[0]))


def test_missing_labels_are_counted(folder):
    write(folder[0] / "test-00000.parquet", [png(image) for image in images(2, 5)], [0, None, 1, None, 2])
    with pytest.raises(OvertoneError, match=r"2 rows of .*test-00000\.parquet' have no label"):
        parquet_source(str(folder[0]))
