"""What people decide about single images."""

import hashlib

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import noise, photos, ppm, write

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.manifest import read_data_manifest
from data.preparing.shard import prepare_part
from data.preparing.stage import prepare
from data.quality.decisions import read_decisions
from data.quality.findings import read_quality
from data.quality.page import quality_page
from data.quality.report import data_report

SPLITS = ("train", "val", "test")
FILES = {
    f"{split}/{path}": content
    for seed, split in enumerate(SPLITS)
    for path, content in photos(5, classes=("cat", "dog", "emu"), seed=seed).items()
}
A, B = "a" * 64, "b" * 64


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Workshop:
    """Images in a folder, and what people decide about them."""

    def __init__(self, root, files, **options):
        self.config = DataConfig(source="folder", path=write(root / "images", files), size=8, **options)
        self.raw, self.prepared, self.parts = root / "raw", root / "prepared", root / "parts"
        self.decisions = root / "decisions.csv"
        ingest(self.config, self.raw, root / "state.json")

    def run(self, *lines):
        self.decisions.write_text("\n".join(lines), encoding="utf-8")
        return prepare(self.config, self.raw, self.prepared, self.parts, self.decisions)

    def labels(self):
        rows = pq.read_table(self.prepared / "index.parquet").to_pylist()
        return {row["origin"]: row["label"] for row in rows}

    def found(self):
        return {finding.kind: finding for finding in read_quality(self.prepared).findings}


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr("data.ingest.stage.MEAN_SHARD_IMAGES", 4)
    return Workshop(tmp_path, FILES)


def test_an_image_gets_another_label_or_goes(workshop):
    wrong, unwanted, right = "train/cat/0001.ppm", "test/dog/0002.ppm", "val/emu/0003.ppm"
    decisions = [
        f"{sha256(FILES[wrong])},emu",
        f"{sha256(FILES[unwanted]).upper()}, drop",
        f"{sha256(FILES[right])},keep",
    ]
    manifest = workshop.run("sha256,decision,image", "# looked at in March", "", *decisions)
    labels = workshop.labels()
    assert labels[wrong] == "emu"
    assert labels.keys() == FILES.keys() - {unwanted}
    assert {name: label for name, label in labels.items() if name != wrong} == {
        name: name.split("/")[1] for name in labels if name != wrong
    }
    assert manifest.splits["train"] == {"cat": 4, "dog": 5, "emu": 6}
    assert [(image.path, image.reason) for image in manifest.rejected] == [(unwanted, "left out by data/decisions.csv")]
    assert workshop.found()["decisions"].summary == "3 decisions apply (data/decisions.csv)"
    assert "unmatched_decisions" not in workshop.found()


def test_a_label_decodes_nothing_and_taking_it_back_leaves_nothing(workshop, monkeypatch):
    workshop.run()
    before = {path.name: path.read_bytes() for path in workshop.prepared.iterdir()}
    monkeypatch.setattr("data.preparing.shard.decode_and_describe", None)
    workshop.run(f"{sha256(FILES['train/cat/0001.ppm'])},dog")
    after = {path.name: path.read_bytes() for path in workshop.prepared.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"train-labels.npy", "index.parquet", "manifest.json", "quality.json"}
    workshop.run()
    assert {path.name: path.read_bytes() for path in workshop.prepared.iterdir()} == before


def test_only_shards_with_an_image_that_goes_are_made_again(workshop, monkeypatch):
    workshop.run()
    made = []
    monkeypatch.setattr("data.preparing.stage.prepare_part", prepare_part)
    real = __import__("data.preparing.shard", fromlist=["_prepare"])._prepare
    monkeypatch.setattr("data.preparing.shard._prepare", lambda name, *rest: made.append(name) or real(name, *rest))
    workshop.run(f"{sha256(FILES['train/cat/0001.ppm'])},drop")
    assert len(made) == 1


def test_what_matches_no_image_is_reported_by_line(workshop):
    workshop.run(f"{A},drop", f"{sha256(FILES['train/cat/0001.ppm'])},keep", f"{B},dog,train/dog/gone.ppm")
    found = workshop.found()
    assert found["decisions"].summary == "1 decision applies (data/decisions.csv)"
    assert found["unmatched_decisions"].summary == "2 decisions without an image (data/decisions.csv)"
    assert [(image.origin, image.note) for (image,) in found["unmatched_decisions"].groups] == [
        ("data/decisions.csv:1", f"drop, {A}"),
        ("data/decisions.csv:3", "dog, train/dog/gone.ppm"),
    ]
    report = data_report(workshop.prepared)
    assert "2 decisions without an image (data/decisions.csv)" in report["warnings"]


COPY = ppm(noise(12, 10, 99))
CONFLICT = {"train/cat/x.ppm": COPY, "train/dog/y.ppm": COPY}
LEAK = {"train/cat/x.ppm": COPY, "test/cat/y.ppm": COPY}
SETTLED = {
    "a label": (CONFLICT, ["{},cat"], {"train/cat/x.ppm": "cat", "train/dog/y.ppm": "cat"}),
    "another label": (CONFLICT, ["{},emu"], {"train/cat/x.ppm": "emu", "train/dog/y.ppm": "emu"}),
    "one copy": (CONFLICT, ["{},keep,train/dog/y.ppm"], {"train/dog/y.ppm": "dog"}),
    "all gone": (CONFLICT, ["{},drop"], {}),
    "one gone": (CONFLICT, ["{},drop,train/dog/y.ppm"], {"train/cat/x.ppm": "cat"}),
    "one gone, one relabelled": (
        CONFLICT,
        ["{},drop,train/dog/y.ppm", "{},emu,train/cat/x.ppm"],
        {"train/cat/x.ppm": "emu"},
    ),
    "a split": (LEAK, ["{},keep,train/cat/x.ppm"], {"train/cat/x.ppm": "cat"}),
}


@pytest.mark.parametrize("on_conflict", ["fail", "drop"])
@pytest.mark.parametrize("case", SETTLED)
def test_conflicts_are_settled(tmp_path, case, on_conflict):
    copies, lines, expected = SETTLED[case]
    workshop = Workshop(tmp_path, FILES | copies, on_conflict=on_conflict)
    workshop.run(*(line.format(sha256(COPY)) for line in lines))
    labels = workshop.labels()
    assert {name: label for name, label in labels.items() if name in copies} == expected
    assert not {"conflicting_labels", "leakage"} & workshop.found().keys()


def test_a_conflict_that_is_not_settled_is_refused_and_names_the_file(tmp_path):
    with pytest.raises(
        UserError, match=r"1 image under more than one label.*settle them in data/decisions.csv, or drop"
    ):
        Workshop(tmp_path, FILES | CONFLICT).run()


@pytest.mark.parametrize("copies", [CONFLICT, LEAK], ids=["labels", "splits"])
def test_keep_must_say_which_copy(tmp_path, copies):
    workshop = Workshop(tmp_path, FILES | copies)
    with pytest.raises(UserError, match=r"decisions.csv:2: leaves open which copy to keep: '.*' or '.*': name one in"):
        workshop.run("", f"{sha256(COPY)},keep")


def test_what_was_found_right_is_not_reported_again(tmp_path):
    strip = ppm(noise(60, 10, 7))
    workshop = Workshop(tmp_path, FILES | {"train/cat/strip.ppm": strip})
    workshop.run()
    assert "extreme_aspect" in workshop.found()
    workshop.run(f"{sha256(strip)},keep")
    assert "extreme_aspect" not in workshop.found()


def test_a_broken_file_that_goes_is_not_reported(tmp_path):
    workshop = Workshop(tmp_path, FILES | {"train/cat/broken.jpg": b"no image"})
    workshop.run(f"{sha256(b'no image')},drop")
    assert workshop.found().keys() == {"decisions"}


def test_a_class_can_be_merged_into_another(workshop):
    emus = [sha256(content) for name, content in FILES.items() if "/emu/" in name]
    assert workshop.run(*(f"{digest},dog" for digest in emus)).classes == ("cat", "dog")
    others = [sha256(content) for name, content in FILES.items() if "/dog/" in name]
    with pytest.raises(UserError, match=r"^data/decisions.csv leaves fewer than two classes"):
        workshop.run(*(f"{digest},cat" for digest in emus + others))


def test_each_picture_on_the_page_can_be_decided_about(tmp_path):
    """A line names the file where others have equal bytes."""
    strip = ppm(noise(60, 10, 7))
    workshop = Workshop(tmp_path, FILES | CONFLICT | {"train/cat/strip.ppm": strip})
    with pytest.raises(UserError):
        workshop.run()
    page = quality_page(workshop.prepared)
    for origin in CONFLICT:
        assert f'data-sha256="{sha256(COPY)}" data-image="{origin}" data-offered="keep"' in page
    assert f'data-sha256="{sha256(strip)}" data-image="" data-offered="drop"' in page
    assert page.count('type="checkbox"') == page.count("<img ") == 3


FAULTS = {
    "an unknown label": (
        "{},cta",
        r"no class is named 'cta': expected drop, keep, or one of the classes cat, dog, emu$",
    ),
    "no label": ("{},", "decides nothing: expected a label, drop or keep in the second column$"),
    "no image": (",drop", "'' names no image: expected the SHA-256 of its file, 64 hexadecimal digits"),
    "half a checksum": ("abc123,drop", "'abc123' names no image"),
    "one column": ("{}", r"has 1 columns: expected sha256,decision or sha256,decision,image$"),
    "four columns": ("{},drop,a,b", "has 4 columns"),
    "an open quote": ('{},"drop', r"is no line of a CSV file \(.*\): quotes come in pairs$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_line_that_makes_no_sense_is_named(workshop, fault):
    line, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as error:
        workshop.run(f"{A},keep", line.format(B))
    assert str(error.value).startswith(f"{workshop.decisions}:2: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"decisions.csv cannot be read \(.*\): expected UTF-8 text"):
        read_decisions(path)
    path.unlink()
    assert read_decisions(path) == []


CONTRADICTIONS = [
    ("drop", "keep"),
    ("cat", "dog"),
    ("drop", "cat,x"),
    ("keep,x", "keep,y"),
    ("keep,x", "cat,y"),
    ("cat,x", "dog,y"),
]
AGREEMENTS = [
    ("drop", "drop"),
    ("drop,x", "drop,y"),
    ("drop,x", "cat,y"),
    ("drop,x", "keep,y"),
    ("keep", "keep,x"),
    ("cat,x", "cat"),
]


def read(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_decisions(path)


@pytest.mark.parametrize("reverse", [False, True])
def test_contradictions_are_named_with_both_lines(tmp_path, reverse):
    path = tmp_path / "decisions.csv"
    for pair in CONTRADICTIONS:
        lines = [f"{A},{rest}" for rest in (pair[::-1] if reverse else pair)]
        with pytest.raises(UserError, match=r"decisions.csv:3: .* contradicts line 1, .* remove one of the two lines$"):
            read(path, lines[0], f"{B},drop", lines[1])
    for pair in AGREEMENTS:
        lines = [f"{A},{rest}" for rest in (pair[::-1] if reverse else pair)]
        assert len(read(path, *lines, f"{B},dog")) == 3


NAMES = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)


@given(st.lists(st.tuples(NAMES.filter(bool), NAMES)))
def test_any_label_and_name_can_be_written(tmp_path_factory, pairs):
    """As the quality page writes them: in quotes."""
    path = tmp_path_factory.mktemp("any") / "decisions.csv"
    rows = [(f"{index:064x}", label, image) for index, (label, image) in enumerate(pairs)]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\r\n".join(["sha256,decision,image", *quoted]).encode())
    assert [(one.sha256, one.what, one.image) for one in read_decisions(path)] == rows


def test_a_manifest_is_there_after_it_was_settled(tmp_path):
    workshop = Workshop(tmp_path, FILES | CONFLICT)
    with pytest.raises(UserError):
        workshop.run()
    workshop.run(f"{sha256(COPY)},cat")
    assert read_data_manifest(workshop.prepared).splits["train"]["cat"] == 7
