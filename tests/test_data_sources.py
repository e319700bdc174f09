import os

import pytest
from conftest import draw_classes
from PIL import Image

from data.config import DataConfig
from data.errors import UserError
from data.sources import DigitsSource, FolderSource, open_source


def listed(folder):
    listing = FolderSource(folder).list_images()
    return {(image.origin, image.label, image.split) for image in listing.images}, {
        rejected.path: rejected.reason for rejected in listing.rejected
    }


def test_digits_are_the_1797_of_scikit_learn():
    images = DigitsSource().list_images().images
    assert len(images) == 1797
    assert {image.label for image in images} == set("0123456789")
    assert [image.origin for image in images] == sorted(image.origin for image in images)


def test_class_folders_whatever_their_names(tmp_path):
    draw_classes(tmp_path, ["a cat", "собака", "two\nlines"], 2)
    (tmp_path / "a cat" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a cat" / "0.png").rename(tmp_path / "a cat" / "deep" / "er" / "0.png")
    images, rejected = listed(tmp_path)
    assert rejected == {}
    assert ("a cat/deep/er/0.png", "a cat", None) in images
    assert {label for _, label, _ in images} == {"a cat", "собака", "two\nlines"}
    assert len(images) == 6


def test_a_name_that_is_no_text(tmp_path):
    draw_classes(tmp_path, ["cat", "dog"], 1)
    (tmp_path / "cat" / os.fsdecode(b"\xff.png")).write_bytes((tmp_path / "cat" / "0.png").read_bytes())
    images, _ = listed(tmp_path)
    assert ("cat/\\xff.png", "cat", None) in images


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_splits_that_the_user_has_made(tmp_path, val):
    for split in ("Train", val, "test"):
        draw_classes(tmp_path / split, ["cat", "dog"], 1)
    images, _ = listed(tmp_path)
    assert {(label, split) for _, label, split in images} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "val", "test")
    }


def test_what_is_no_image_of_a_class_is_named(tmp_path):
    draw_classes(tmp_path, ["cat", "dog"], 1)
    (tmp_path / "emu").mkdir()
    (tmp_path / "readme.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    images, rejected = listed(tmp_path)
    assert len(images) == 2
    assert rejected.keys() == {"emu", "readme.txt", "cat/gone.png", "dog/pipe.png"}
    assert rejected["readme.txt"] == "not in a class folder"
    assert rejected["emu"] == "class folder without images"


def test_the_fingerprint_follows_the_files(tmp_path):
    draw_classes(tmp_path, ["cat", "dog"], 2)
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    Image.new("RGB", (4, 4)).save(tmp_path / "cat" / "new.png")
    added = FolderSource(tmp_path).fingerprint()
    (tmp_path / "cat" / "new.png").rename(tmp_path / "dog" / "new.png")
    assert len({before, added, FolderSource(tmp_path).fingerprint()}) == 3


def test_no_path():
    with pytest.raises(UserError, match=r"--set data\.path=FOLDER"):
        open_source(DataConfig(source="folder"))
