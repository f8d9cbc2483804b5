import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from layers.errors import OvertoneError, UsageError
from trainers.parquet import parquet_source


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def images(seed: int, n: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


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
    assert torch.equal(source.read("train", rows), torch.from_numpy(train).permute(0, 3, 1, 2)[rows])
    assert torch.equal(source.read("test", torch.tensor([4, 0])), torch.from_numpy(test).permute(0, 3, 1, 2)[[4, 0]])
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
    good = torch.tensor([0, 6, 8, 16])
    assert torch.equal(source.read("train", good), torch.from_numpy(train).permute(0, 3, 1, 2)[good])


def test_faulty_images_are_counted_and_named_with_file_and_row(folder):
    encoded = [png(image) for image in images(1, 6)]
    encoded[2], encoded[4], encoded[5] = b"rubbish", None, png(images(3, 1, side=9)[0])
    write(folder[0] / "train-00001-of-00002.parquet", encoded, [0] * 6)
    source = parquet_source(str(folder[0]))
    with pytest.raises(OvertoneError, match=r"3 of 17 images of 'parquet:.*' cannot be used: ") as error:
        source.read("train", torch.arange(16, -1, -1))
    for named in (
        "train-00001-of-00002.parquet row 2 ('2.png') cannot be decoded",
        "row 4 ('4.png') is empty",
        "row 5 ('5.png') measures 9x9 where the first measures 8x8",
    ):
        assert named in str(error.value)


def test_a_null_image_is_empty(folder):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array([None], struct), "label": pa.array([1])})
    pq.write_table(table, folder[0] / "test-00000.parquet")
    with pytest.raises(OvertoneError, match=r"row 0 \(None\) is empty"):
        parquet_source(str(folder[0])).read("test", torch.tensor([0]))


def test_the_first_image_that_decodes_sets_the_size(folder):
    encoded = [b"rubbish", *(png(image) for image in images(0, 10))]
    write(folder[0] / "train-00000-of-00002.parquet", encoded, [0] * 11)
    assert parquet_source(str(folder[0])).image_bytes == 192


def test_nothing_decodable_is_refused(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"{part}-0.parquet", [b"rubbish"] * 3, [0, 1, 0])
    with pytest.raises(OvertoneError, match=r"none of the training images of 'parquet:.*' can be decoded"):
        parquet_source(str(tmp_path))


def test_a_missing_folder_and_missing_parts_are_wrong_use(folder, tmp_path):
    with pytest.raises(UsageError, match="the folder '/no/such' of dataset 'parquet:/no/such' does not exist"):
        parquet_source("/no/such")
    (folder[0] / "test-00000.parquet").unlink()
    with pytest.raises(UsageError, match=r"has no test-\*\.parquet"):
        parquet_source(str(tmp_path))


def test_a_foreign_file_is_refused(folder):
    (folder[0] / "train-00000-of-00002.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(OvertoneError, match=r"train-00000-of-00002\.parquet' is not a readable Parquet file"):
        parquet_source(str(folder[0]))


def test_a_file_that_breaks_off_inside_is_refused(folder):
    path = folder[0] / "test-00000.parquet"
    metadata = pq.ParquetFile(path).metadata
    images = next(c for c in (metadata.row_group(0).column(i) for i in range(3)) if c.path_in_schema == "img.bytes")
    content = bytearray(path.read_bytes())
    content[images.data_page_offset : images.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    source = parquet_source(str(folder[0]))
    with pytest.raises(OvertoneError, match=r"test-00000\.parquet' is not a readable Parquet file"):
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
