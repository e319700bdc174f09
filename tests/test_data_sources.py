import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from images import write
from PIL import Image

from core.errors import UserError
from data.config import DataConfig
from data.sources.base import Rejected
from data.sources.folder import FolderSource
from data.sources.registry import open_source


def listed(root):
    return {image.origin: (image.label, image.split) for image in FolderSource(root).list_images().images}


def rejected(root):
    return {image.path: image.reason for image in FolderSource(root).list_images().rejected}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "photos", {"cat/1.jpg": b"one", "cat/2.jpg": b"two", "dog/1.jpg": b"three"})


@pytest.fixture
def plain_user():
    """Root may read everything: be somebody else for a while, in a folder that anybody can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)  # nobody
        yield Path(name)
        os.seteuid(before)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = open_source(DataConfig()).list_images().images
    assert len(images) == 1797
    assert [image.origin for image in images] == sorted(image.origin for image in images)
    assert [int(image.label) for image in images] == digits.target.tolist()
    import io

    for image, levels in zip(images, digits.images, strict=True):
        # 17 levels, 0 to 16, become 0 to 255.
        pixels = np.asarray(Image.open(io.BytesIO(image.content)))
        np.testing.assert_array_equal(pixels, np.round(levels * 255 / 16))
        assert image.num_bytes == len(image.content)
        assert image.split is None


def test_classes_are_folders(folder):
    write(folder, {"cat/kittens/new/1.jpg": b"four"})
    assert listed(folder) == {
        "cat/1.jpg": ("cat", None),
        "cat/2.jpg": ("cat", None),
        "cat/kittens/new/1.jpg": ("cat", None),
        "dog/1.jpg": ("dog", None),
    }
    images = FolderSource(folder).list_images().images
    assert [image.origin for image in images] == sorted(listed(folder))
    assert [(Path(image.content).read_bytes(), image.num_bytes) for image in images if image.label == "dog"] == [
        (b"three", 5)
    ]


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "valid"), ("TRAIN", "Validation")])
def test_given_splits_are_recognized(tmp_path, train, val):
    names = [f"{train}/cat/1.jpg", f"{train}/dog/old/1.jpg", f"{val}/cat/1.jpg", "test/dog/1.jpg"]
    write(tmp_path, dict.fromkeys(names, b"x"))
    assert listed(tmp_path) == {
        names[0]: ("cat", "train"),
        names[1]: ("dog", "train"),
        names[2]: ("cat", "val"),
        names[3]: ("dog", "test"),
    }


def test_only_a_training_split(tmp_path):
    write(tmp_path, {"train/cat/1.jpg": b"x", "train/dog/1.jpg": b"x"})
    assert set(listed(tmp_path).values()) == {("cat", "train"), ("dog", "train")}


def test_a_class_may_be_named_like_a_split(tmp_path):
    write(tmp_path, {"train/steam/1.jpg": b"x", "plane/jet/1.jpg": b"x", "ship/1.jpg": b"x"})
    assert {label for label, _ in listed(tmp_path).values()} == {"train", "plane", "ship"}


def test_what_lies_beside_the_splits_is_no_class(tmp_path):
    write(tmp_path, {"train/cat/1.jpg": b"x", "train/dog/1.jpg": b"x", "test/cat/1.jpg": b"x"})
    write(tmp_path, {"unsorted/1.jpg": b"x", "unsorted/deep/2.jpg": b"x", "notes.txt": b"x", "val/loose.jpg": b"x"})
    assert {label for label, _ in listed(tmp_path).values()} == {"cat", "dog"}
    strays = ["notes.txt", "unsorted/1.jpg", "unsorted/deep/2.jpg", "val/loose.jpg"]
    assert rejected(tmp_path) == dict.fromkeys(strays, "not in a class folder")


NAMES = ["a b.jpg", "line\nbreak.jpg", "кошка.jpg", "猫.jpg", "'\"`$|&;.jpg", "-rf.jpg", "%s{0}.jpg", "x" * 250]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_an_origin_and_a_label(tmp_path, name):
    write(tmp_path, {f"{name}/{name}": b"x", "dog/1.jpg": b"x"})
    assert listed(tmp_path)[f"{name}/{name}"] == (name, None)


def test_names_that_are_no_utf_8_are_spelt_in_bytes(folder):
    try:
        (folder / os.fsdecode(b"caf\xe9")).mkdir()
        (folder / os.fsdecode(b"caf\xe9/\xff.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert listed(folder)[r"caf\xe9/\xff.jpg"] == (r"caf\xe9", None)
    (image,) = [image for image in FolderSource(folder).list_images().images if image.label == r"caf\xe9"]
    assert Path(image.content).read_bytes() == b"x"
    # As text, the name goes into any file.
    FolderSource(folder).fingerprint().encode()
    image.state.encode()


def test_hidden_files_are_not_looked_at(folder):
    before = FolderSource(folder).fingerprint()
    write(folder, {"cat/.DS_Store": b"x", ".cache/1.jpg": b"x", "cat/.thumbnails/1.jpg": b"x", ".hidden": b"x"})
    assert len(listed(folder)) == 3
    assert rejected(folder) == {}
    assert FolderSource(folder).fingerprint() == before


def test_what_is_no_image_file_is_named_with_its_reason(folder):
    (folder / "cat" / "gone.jpg").symlink_to("nowhere")
    (folder / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "cat" / "linked").symlink_to(folder / "dog")
    os.mkfifo(folder / "cat" / "pipe.jpg")
    (folder / "empty").mkdir()
    write(folder, {"README.txt": b"x"})
    assert rejected(folder) == {
        "README.txt": "not in a class folder",
        "cat/gone.jpg": "broken link",
        "cat/linked": "link to a folder, not followed",
        "cat/loop.jpg": "broken link",
        "cat/pipe.jpg": "not a regular file",
        "empty": "class folder without images",
    }
    assert len(listed(folder)) == 3


def test_links_to_files_and_to_class_folders_are_followed(folder, tmp_path):
    write(tmp_path / "elsewhere", {"1.jpg": b"x"})
    (folder / "bird").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "3.jpg").symlink_to(folder / "dog" / "1.jpg")
    assert listed(folder)["bird/1.jpg"] == ("bird", None)
    assert listed(folder)["cat/3.jpg"] == ("cat", None)


def test_unreadable_folders_are_named(plain_user):
    root = write(plain_user / "photos", {"cat/1.jpg": b"x", "dog/1.jpg": b"x", "dog/locked/1.jpg": b"x"})
    write(root, {"bird/blind/1.jpg": b"x"})
    (root / "dog" / "locked").chmod(0)
    (root / "bird" / "blind").chmod(0o444)  # its names can be read, its files not
    try:
        assert list(listed(root)) == ["cat/1.jpg", "dog/1.jpg"]
        assert rejected(root) == {
            "bird/blind/1.jpg": "cannot be read: Permission denied",
            "dog/locked": "cannot be read: Permission denied",
        }
        root.chmod(0)
        with pytest.raises(UserError, match=r"^data.path: '.*' cannot be read \(Permission denied\): let this user"):
            FolderSource(root).list_images()
        with pytest.raises(UserError, match=r"^data.path: '.*' cannot be read \(Permission denied\): expected <class>"):
            FolderSource(root / "cat")
    finally:
        root.chmod(0o755)
        for name in ("dog/locked", "bird/blind"):
            (root / name).chmod(0o755)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images in class folders"),
        ({"1.jpg": b"x"}, "holds no images in class folders"),
        ({"cat/.hidden": b"x"}, "holds no images in class folders"),
        ({"cat/1.jpg": b"x"}, "holds one class, 'cat': a classifier needs two or more"),
        ({"a\nb/1.jpg": b"x"}, r"holds one class, 'a\\nb': a classifier"),
        ({"train/cat/1.jpg": b"x", "test/cat/2.jpg": b"x"}, "holds one class, 'cat'"),
        ({"val/cat/1.jpg": b"x", "test/dog/1.jpg": b"x"}, "holds no images in train/<class>"),
    ],
)
def test_unusable_folders_are_told_in_one_line(tmp_path, files, message):
    root = write(tmp_path / "line\nbreak", files)
    root.mkdir(exist_ok=True)
    for use in (FolderSource(root).list_images, FolderSource(root).fingerprint):
        with pytest.raises(UserError, match=message) as error:
            use()
        assert "expected <class>/*.jpg or train|val|test/<class>/*.jpg" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_path_that_is_no_folder(tmp_path):
    write(tmp_path, {"file": b"x"})
    for path, message in [
        (None, "data.path is not set: name the folder of your images with --set data.path=FOLDER"),
        (tmp_path / "nowhere", "does not exist: expected <class>"),
        (tmp_path / "file", "is not a folder: expected <class>"),
        (tmp_path / "file" / "below", "cannot be read (Not a directory): expected <class>"),
        (tmp_path / ("x" * 300), "cannot be read (File name too long): expected <class>"),
    ]:
        with pytest.raises(UserError) as error:
            open_source(DataConfig(source="folder", path=path))
        assert message in str(error.value)


def put_back_the_time(folder):
    """What tools that turn photographs do: same size, same time of modification, other bytes."""
    path = folder / "cat" / "1.jpg"
    status = path.stat()
    path.write_bytes(b"eno")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


CHANGES = {
    "added": lambda folder: write(folder, {"cat/3.jpg": b"x"}),
    "removed": lambda folder: (folder / "cat" / "1.jpg").unlink(),
    "renamed": lambda folder: (folder / "cat" / "1.jpg").rename(folder / "cat" / "0.jpg"),
    "relabelled": lambda folder: (folder / "cat" / "1.jpg").rename(folder / "dog" / "2.jpg"),
    "longer": lambda folder: write(folder, {"cat/1.jpg": b"longer"}),
    "same size": lambda folder: write(folder, {"cat/1.jpg": b"eno"}),
    "same size and time": put_back_the_time,
    "stray": lambda folder: write(folder, {"stray.txt": b"x"}),
    "empty class": lambda folder: (folder / "bird").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_the_files(folder, change):
    # The clock of a file system may stand still for some milliseconds.
    for path in folder.rglob("*.jpg"):
        os.utime(path, (1e9, 1e9))
    before = FolderSource(folder).fingerprint()
    CHANGES[change](folder)
    assert FolderSource(folder).fingerprint() != before


def test_the_fingerprint_stays_when_nothing_changes(folder, monkeypatch):
    before = FolderSource(folder).fingerprint()
    for path in folder.rglob("*.jpg"):
        path.read_bytes()
    monkeypatch.chdir(folder.parent)
    assert FolderSource(Path("photos")).fingerprint() == before
    assert FolderSource(folder.parent / "photos" / ".." / "photos").fingerprint() == before


def test_two_folders_with_equal_names_are_told_apart(folder, tmp_path):
    other = write(tmp_path / "other", {name.relative_to(folder): b"x" for name in folder.rglob("*.jpg")})
    assert listed(other) == listed(folder)
    assert FolderSource(other).fingerprint() != FolderSource(folder).fingerprint()


def test_rejected_images_have_one_order(tmp_path):
    write(tmp_path, {"dog/1.jpg": b"x", "cat/1.jpg": b"x", "z.txt": b"", "a.txt": b""})
    (tmp_path / "ape").mkdir()
    found = FolderSource(tmp_path).list_images().rejected
    assert found == sorted(found, key=lambda image: image.path)
    assert Rejected("a.txt", "not in a class folder") in found
