import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import noise, photos, ppm, write

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.sources.base import Rejected
from data.sources.parquet import NUM_KEPT_GROUPS, ParquetSource, split_in_name
from data.sources.registry import open_source

PICTURES = [ppm(noise(12, 10, index)) for index in range(12)]
NAMES = ["cat", "dog", "emu"]


def hugging_face(path, pictures, labels, *, names=NAMES, image="image", label="label", group=4):
    """The layout of Hugging Face's image data sets: a struct of bytes and path, and numbers that stand for names."""
    rows = [{"bytes": content, "path": f"{index}.ppm"} for index, content in enumerate(pictures)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def plain(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


def listed(path):
    images = ParquetSource(path).list_images().images
    return {image.origin: (image.label, image.split, image.content()) for image in images}


def test_hugging_face_layout_with_splits_by_file_name(tmp_path):
    hugging_face(tmp_path / "data/train-00000-of-00002.parquet", PICTURES[:5], [0, 1, 2, 1, 0])
    hugging_face(tmp_path / "data/train-00001-of-00002.parquet", PICTURES[5:8], [0, 1, 2])
    hugging_face(tmp_path / "data/validation-00000-of-00001.parquet", PICTURES[8:10], [2, 1])
    hugging_face(tmp_path / "data/test-00000-of-00001.parquet", PICTURES[10:], [0, 1])
    found = listed(tmp_path)
    assert found["data/train-00000-of-00002.parquet/00000004"] == ("cat", "train", PICTURES[4])
    assert found["data/validation-00000-of-00001.parquet/00000001"] == ("dog", "val", PICTURES[9])
    assert [split for _, split, _ in found.values()] == ["test"] * 2 + ["train"] * 8 + ["val"] * 2
    assert sorted(content for _, _, content in found.values()) == sorted(PICTURES)
    assert list(found) == sorted(found)


def test_plain_layout_in_one_file(tmp_path):
    labels = ["cat", "dog", None, "", *["cat"] * 8]
    path = plain(tmp_path / "pets.parquet", id=list(range(12)), image=PICTURES, label=labels)
    found = listed(path)
    assert len(found) == 10
    assert found["pets.parquet/00000001"] == ("dog", None, PICTURES[1])
    assert ParquetSource(path).list_images().rejected == [
        Rejected("pets.parquet/00000002", "no label"),
        Rejected("pets.parquet/00000003", "no label"),
    ]


def test_numbers_without_names_are_labels(tmp_path):
    path = plain(tmp_path / "x.parquet", img=PICTURES, target=[index % 3 for index in range(12)])
    assert {label for label, _, _ in listed(path).values()} == {"0", "1", "2"}


def test_a_column_of_splits_goes_before_names_of_files(tmp_path):
    splits = pa.array(["train", "validation", "TEST", None, "extra", "train"] * 2).dictionary_encode()
    labels = pa.array(["cat", "dog"] * 6).dictionary_encode()
    path = plain(tmp_path / "train.parquet", image=PICTURES, label=labels, split=splits)
    assert [split for _, split, _ in listed(path).values()] == ["train", "val", "test", None, "train"] * 2
    reasons = {image.reason for image in ParquetSource(path).list_images().rejected}
    assert reasons == {"split 'extra' is none of train, val, valid, validation, test"}


def test_labels_that_stand_for_nothing_are_rejected(tmp_path):
    """Hugging Face gives -1 to images of a test set whose labels are kept secret."""
    path = hugging_face(tmp_path / "train.parquet", PICTURES[:4], [0, 1, -1, 3])
    assert [image.reason for image in ParquetSource(path).list_images().rejected] == [
        "no label",
        "label 3, where 3 classes have names",
    ]


def test_what_the_table_declares_goes_before_guesses(tmp_path):
    path = hugging_face(tmp_path / "a.parquet", PICTURES[:3], [0, 1, 2], image="photo", label="breed")
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", pa.array(["x", "y", "z"])), path)
    assert [label for label, _, _ in listed(path).values()] == NAMES


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("validation.parquet", "val"),
        ("default/partial-train/0000.parquet", "train"),
        ("Test/part-3.parquet", "test"),
        ("test/train_1.parquet", "train"),
        ("pets.parquet", None),
        ("training.parquet", None),
    ],
)
def test_split_in_a_name(tmp_path, name, split):
    assert split_in_name((tmp_path / name).relative_to(tmp_path)) == split


def test_images_are_read_by_row_group_and_few_are_kept(tmp_path, monkeypatch):
    path = hugging_face(tmp_path / "train.parquet", PICTURES, [0, 1, 2] * 4, group=2)
    reads = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda file, group, **kw: reads.append(group) or real(file, group, **kw)
    )
    source = ParquetSource(path)
    images = source.list_images().images
    assert reads == []
    assert [image.content() for image in images] == PICTURES
    assert reads == [0, 1, 2, 3, 4, 5]
    assert len(source._groups._kept) == NUM_KEPT_GROUPS


def test_a_row_without_bytes_is_rejected_by_ingest(tmp_path):
    hugging_face(tmp_path / "in/train.parquet", [*PICTURES[:6], None], [0, 1, 2, 0, 1, 2, 0])
    config = DataConfig(source="parquet", path=tmp_path / "in")
    ingest(config, tmp_path / "raw", tmp_path / "state.json")
    assert json.loads((tmp_path / "raw/rejected.json").read_text()) == [
        {"path": "train.parquet/00000006", "reason": "cannot be read: the table holds no bytes for it"}
    ]


def test_rows_that_are_too_large_are_rejected_when_they_are_read(tmp_path):
    """A table tells the sizes of single images only when it is read; a changed limit reads them again."""
    small, large = [ppm(noise(10, 10, index)) for index in range(8)], ppm(noise(100, 100))
    plain(tmp_path / "in/a.parquet", image=[*small, large], label=["cat", "dog"] * 4 + ["cat"])
    config = DataConfig(source="parquet", path=tmp_path / "in", max_file_mb=0.01)
    ingest(config, tmp_path / "raw", tmp_path / "state.json")
    (rejected,) = json.loads((tmp_path / "raw/rejected.json").read_text())
    assert "more than data.max_file_mb=0.01" in rejected["reason"]
    ingest(config.model_copy(update={"max_file_mb": 1}), tmp_path / "raw", tmp_path / "state.json")
    assert json.loads((tmp_path / "raw/rejected.json").read_text()) == []


def test_convoys_own_tables_are_a_source(tmp_path):
    """From a folder to data/raw, and from that as a source to the same prepared images."""
    files = photos(20)
    first, second = tmp_path / "first", tmp_path / "second"
    config = DataConfig(source="folder", path=write(tmp_path / "images", files))
    ingest(config, first / "raw", first / "state.json")
    one = prepare(config, first / "raw", first / "prepared", first / "parts")
    again = DataConfig(source="parquet", path=first / "raw")
    ingest(again, second / "raw", second / "state.json")
    other = prepare(again, second / "raw", second / "prepared", second / "parts")
    assert (one.classes, one.splits, one.color) == (other.classes, other.splits, other.color)
    checksums = [
        sorted(
            pq.read_table(folder / "prepared/index.parquet", columns=["sha256", "split", "label"]).to_pylist(), key=str
        )
        for folder in (first, second)
    ]
    assert checksums[0] == checksums[1]


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    path = hugging_face(tmp_path / "train.parquet", PICTURES[:4], [0, 1, 2, 0])
    before = ParquetSource(tmp_path).fingerprint()
    assert ParquetSource(tmp_path).fingerprint() == before
    hugging_face(path, PICTURES[:5], [0, 1, 2, 0, 1])
    assert ParquetSource(tmp_path).fingerprint() != before


def refused(path):
    with pytest.raises(UserError) as error:
        open_source(DataConfig(source="parquet", path=path)).list_images()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_faults_are_named_in_one_line(tmp_path):
    assert "data.path is not set" in refused(None)
    assert "does not exist" in refused(tmp_path / "nothing")
    assert "holds no .parquet file" in refused(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    assert "cannot be read as parquet" in refused(tmp_path)
    plain(tmp_path / "a.parquet", picture=["a.jpg"], what=[1.5])
    assert "has the columns picture: string, what: double: expected" in refused(tmp_path)
    plain(tmp_path / "a.parquet", image=PICTURES[:2], label=["cat", "cat"])
    assert "one class, 'cat'" in refused(tmp_path)
    plain(tmp_path / "a.parquet", image=PICTURES[:1], label=pa.array([None], pa.string()))
    assert "no labelled row" in refused(tmp_path)
    (tmp_path / "a.parquet").rename(tmp_path / "test.parquet")
    plain(tmp_path / "test.parquet", image=PICTURES[:2], label=["cat", "dog"])
    assert "no training images" in refused(tmp_path)


def test_a_table_that_is_cut_off_is_named(tmp_path):
    path = hugging_face(tmp_path / "train.parquet", PICTURES, [0, 1, 2] * 4)
    path.write_bytes(path.read_bytes()[:-100])
    assert "train.parquet' cannot be read as parquet" in refused(tmp_path)


def test_data_raw_is_not_its_own_source(tmp_path):
    hugging_face(tmp_path / "raw/train.parquet", PICTURES[:4], [0, 1, 2, 0])
    with pytest.raises(UserError, match="overlaps"):
        ingest(DataConfig(source="parquet", path=tmp_path / "raw"), tmp_path / "raw", tmp_path / "state.json")
