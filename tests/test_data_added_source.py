"""A source that a user writes, in a file of the project."""

import json

import pyarrow.parquet as pq
import pytest
from images import noise, ppm, write

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.sources.registry import open_source
from data.stages import stage_code

SOURCE = """
from pathlib import Path
from data.sources.base import Listing, Rejected, SourceImage

class Photos:
    def __init__(self, path):
        self.folder = path

    def list_images(self):
        files = sorted(self.folder.glob("*.ppm"), reverse=True)
        images = [SourceImage.of_bytes(file.name, file.name[:3], file.read_bytes()) for file in files]
        return Listing(images, [Rejected("z", "no photo"), Rejected("a", "no photo")])
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    write(tmp_path, {f"photos/{name}{number}.ppm": ppm(noise(9, 8)) for name in ("cat", "dog") for number in (1, 2)})
    write(tmp_path, {"my_source.py": SOURCE.encode()})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(project, source="my_source:Photos"):
    return DataConfig(source=source, path=project / "photos")


def test_its_images_are_listed_in_order(project):
    source = open_source(config(project))
    listing = source.list_images()
    assert [(image.origin, image.label) for image in listing.images] == [
        *(("cat1.ppm", "cat"), ("cat2.ppm", "cat"), ("dog1.ppm", "dog"), ("dog2.ppm", "dog"))
    ]
    assert [rejected.path for rejected in listing.rejected] == ["a", "z"]
    before = source.fingerprint()
    assert open_source(config(project)).fingerprint() == before
    (project / "photos/dog2.ppm").write_bytes(ppm(noise(9, 8, seed=1)))
    assert open_source(config(project)).fingerprint() != before


def test_its_images_are_ingested_and_its_code_counts(project):
    ingest(config(project), project / "raw", project / "state.json")
    (shard,) = (project / "raw").glob("*.parquet")
    assert pq.read_table(shard)["label"].to_pylist() == ["cat", "cat", "dog", "dog"]
    before = stage_code("my_source:Photos")
    (project / "my_source.py").write_text(f"# Four photos.\n{SOURCE}")
    assert stage_code("my_source:Photos") == before
    (project / "my_source.py").write_text(SOURCE.replace("reverse=True", "reverse=False"))
    after = stage_code("my_source:Photos")
    assert [stage for stage in before if after[stage] != before[stage]] == ["ingest"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [("OSError('no such page')", "cannot be read: no such page"), ("KeyError('page')", None)],
)
def test_an_image_that_cannot_be_read_is_rejected_and_an_error_is_told(project, error, outcome):
    text = f"""{SOURCE}
    def list_images(self):
        def fail():
            raise {error}

        content = (self.folder / "cat1.ppm").read_bytes()
        fetched = [SourceImage(f"{{label}}9", label, None, fail, 9, "1") for label in ("cat",)]
        return Listing([*fetched, *(SourceImage.of_bytes(label, label, content) for label in ("cat", "dog"))])
"""
    (project / "my_source.py").write_text(text)
    if outcome is None:
        with pytest.raises(
            UserError, match=r"^my_source\.py:16: KeyError: 'page' \(data\.source is my_source:Photos\)$"
        ):
            ingest(config(project), project / "raw", project / "state.json")
        return
    ingest(config(project), project / "raw", project / "state.json")
    assert json.loads((project / "raw/rejected.json").read_text()) == [{"path": "cat9", "reason": outcome}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("file.name[:3]", "'cat'"), "which lists images of 1 classes: a classifier needs two or more"),
        (("of_bytes(file.name,", "of_bytes('a',"), "which lists 'a' more than once: give each image its own origin"),
        (("file.read_bytes())", "file.read_bytes(), 'exam')"), "which lists an image with split 'exam': expected text"),
        (("file.read_bytes())", "file.read_bytes(), 'test')"), "which lists no images for training: give them"),
        (("file.name[:3]", "3"), "which lists an image with label 3: expected text for origin, label and state"),
        (("Listing(images,", "(images,"), "which gave a tuple: expected data.sources.base.Listing"),
        (("SourceImage.of_bytes(", "("), "which gave a tuple: expected data.sources.base.SourceImage"),
        (("def list_images", "def list_all"), "expected an object with list_images()"),
        (("self, path", "self"), "which cannot be called as Photos(path): too many positional arguments"),
        (("return", "return 1 /"), "my_source.py:12: TypeError: unsupported operand"),
        (("self.folder = path", "self.folder = path\n\n    def fingerprint(self):\n        return 3"), "gave an int"),
    ],
)
def test_what_is_no_source_is_told_in_one_line(project, change, words):
    assert change[0] in SOURCE
    (project / "my_source.py").write_text(SOURCE.replace(*change))
    with pytest.raises(UserError) as caught:
        open_source(config(project)).fingerprint()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
