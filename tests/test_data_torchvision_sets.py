"""Published data sets as torchvision finds them on disk, a few images each; nothing is downloaded."""

import dataclasses
import hashlib
import json
import pickle
import socket
import struct
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from images import encode, noise, write
from PIL import Image

from core.errors import UserError
from data.config import DataConfig
from data.images.decode import Preprocessing, decode
from data.ingest.stage import ingest
from data.manifest import mirror_keeps_label
from data.preparing.stage import prepare
from data.sources import torchvision_sets
from data.sources.registry import open_source
from data.sources.torchvision_sets import FLOWERS, PUBLISHED


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def publish(monkeypatch):
    """Make believe that so many images were published in each split."""

    def set_numbers(name, **numbers):
        splits = {part: (split, numbers[part]) for part, (split, _) in PUBLISHED[name].splits.items()}
        monkeypatch.setitem(torchvision_sets.PUBLISHED, name, dataclasses.replace(PUBLISHED[name], splits=splits))

    return set_numbers


def jpeg(seed):
    return encode(noise(20, 16, seed), "JPEG")


def listed(name, root):
    images = open_source(DataConfig(source=name, path=root)).list_images().images
    return {image.origin: (image.label, image.split) for image in images}


def md5(path: Path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def cifar10(root, monkeypatch, num_images=4):
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    pixels = {name: np.stack([noise(32, 32, (part, index)) for index in range(num_images)])
              for part, name in enumerate(("data_batch_1", "test_batch"))}  # fmt: skip
    content = {name: {"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072), "labels": [0, 9, 9, 0][:num_images]}
               for name, images in pixels.items()}  # fmt: skip
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    content["batches.meta"] = {"label_names": names}
    write(folder, {name: pickle.dumps(entry) for name, entry in content.items()})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    return pixels


def test_cifar10(tmp_path, monkeypatch, publish):
    pixels = cifar10(tmp_path, monkeypatch)
    publish("cifar10", train=4, test=4)
    images = open_source(DataConfig(source="cifar10", path=tmp_path)).list_images().images
    assert [(image.origin, image.label, image.split) for image in images[:5]] == [
        ("test/00000.png", "airplane", "test"),
        ("test/00001.png", "truck", "test"),
        ("test/00002.png", "truck", "test"),
        ("test/00003.png", "airplane", "test"),
        ("train/00000.png", "airplane", "train"),
    ]
    spec = Preprocessing(size=32, crop=32, max_pixels=10**6)
    np.testing.assert_array_equal(decode(images[6].content(), spec), pixels["data_batch_1"][2])


def test_from_cifar10_to_prepared_images(tmp_path, monkeypatch, publish):
    """Test images as published; those for validation are drawn from the training images."""
    cifar10(tmp_path / "in", monkeypatch)
    content = {"data": np.concatenate([noise(32, 96, seed).reshape(-1, 3072) for seed in range(20)]),
               "labels": [0, 9, 5] * 20}  # fmt: skip
    batch = tmp_path / "in/cifar-10-batches-py/data_batch_1"
    batch.write_bytes(pickle.dumps(content))
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(batch)]])
    publish("cifar10", train=60, test=4)
    config = DataConfig(source="cifar10", path=tmp_path / "in")
    ingest(config, tmp_path / "raw", tmp_path / "state.json")
    manifest = prepare(config, tmp_path / "raw", tmp_path / "prepared", tmp_path / "parts")
    assert manifest.num_in("test") == 4
    assert manifest.num_in("train") + manifest.num_in("val") == 60
    assert manifest.num_in("val") > 0
    assert manifest.mirror_keeps_label


def test_fashion_mnist(tmp_path, publish):
    pixels = np.stack([noise(28, 28, index)[..., 0] for index in range(3)])
    labels = bytes([9, 0, 5])
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">IIII", 2051, 3, 28, 28) + pixels.tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">II", 2049, 3) + labels
    write(tmp_path / "FashionMNIST/raw", files)
    publish("fashion_mnist", train=3, test=3)
    images = open_source(DataConfig(source="fashion_mnist", path=tmp_path)).list_images().images
    assert [image.label for image in images] == ["Ankle boot", "T-shirt/top", "Sandal"] * 2
    with Image.open(write(tmp_path, {"x.png": images[1].content()}) / "x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels[1])


def test_imagenette(tmp_path, publish):
    """Its results are published on `val`, which is the test split here."""
    files = {f"{part}/{wnid}/{wnid}_{index}.JPEG": jpeg(index)
             for part in ("train", "val") for wnid in ("n01440764", "n03028079") for index in range(2)}  # fmt: skip
    write(tmp_path / "imagenette2-320", files)
    publish("imagenette", train=4, val=4)
    found = listed("imagenette", tmp_path)
    assert found["imagenette2-320/train/n01440764/n01440764_1.JPEG"] == ("tench", "train")
    assert found["imagenette2-320/val/n03028079/n03028079_0.JPEG"] == ("church", "test")
    assert len(found) == 8


def test_flowers102(tmp_path, monkeypatch, publish):
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    base = write(tmp_path / "flowers-102", {f"jpg/image_{number:05d}.jpg": jpeg(number) for number in range(1, 7)})
    savemat(base / "imagelabels.mat", {"labels": [[1, 2, 102, 1, 2, 102]]})
    savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    files = {key: (name, md5(base / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(Flowers102, "_file_dict", Flowers102._file_dict | files)
    publish("flowers102", train=2, val=2, test=2)
    assert list(listed("flowers102", tmp_path).values()) == [
        ("pink primrose", "train"),
        ("hard-leaved pocket orchid", "train"),
        ("blackberry lily", "val"),
        ("pink primrose", "val"),
        ("hard-leaved pocket orchid", "test"),
        ("blackberry lily", "test"),
    ]
    assert len(set(FLOWERS)) == 102


def food101(root):
    lists = {
        "train": {"apple_pie": ["apple_pie/1"], "sushi": ["sushi/1"]},
        "test": {"apple_pie": [], "sushi": ["sushi/2"]},
    }
    files = {f"images/{name}.jpg": jpeg(1) for parts in lists.values() for names in parts.values() for name in names}
    write(root / "food-101", files | {f"meta/{part}.json": json.dumps(names).encode() for part, names in lists.items()})


def test_food101(tmp_path, publish):
    food101(tmp_path)
    publish("food101", train=2, test=1)
    assert listed("food101", tmp_path) == {
        "food-101/images/apple_pie/1.jpg": ("apple_pie", "train"),
        "food-101/images/sushi/1.jpg": ("sushi", "train"),
        "food-101/images/sushi/2.jpg": ("sushi", "test"),
    }


def test_imagenet_tells_classes_of_one_name_apart(tmp_path, publish):
    import torch

    names = {"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca tinca")}
    write(tmp_path, {f"{part}/{wnid}/1.JPEG": jpeg(1) for part in ("train", "val") for wnid in names})
    torch.save((names, []), tmp_path / "meta.bin")
    publish("imagenet", train=3, val=3)
    assert listed("imagenet", tmp_path) == {
        "train/n01440764/1.JPEG": ("tench", "train"),
        "train/n02012849/1.JPEG": ("crane (n02012849)", "train"),
        "train/n03126707/1.JPEG": ("crane (n03126707)", "train"),
        "val/n01440764/1.JPEG": ("tench", "test"),
        "val/n02012849/1.JPEG": ("crane (n02012849)", "test"),
        "val/n03126707/1.JPEG": ("crane (n03126707)", "test"),
    }


def refused(name, root):
    with pytest.raises(UserError) as error:
        open_source(DataConfig(source=name, path=root)).list_images()
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_network_it_says_what_to_put_where(name, tmp_path):
    message = refused(name, tmp_path)
    assert f"data.source={name} is not in {tmp_path}" in message
    assert f"into {tmp_path}" in message
    if name == "imagenet":
        assert "an account is needed" in message
    else:
        assert "Temporary failure in name resolution" in message
        assert "where there is a network" in message


def test_a_missing_file_is_named(tmp_path, publish):
    food101(tmp_path)
    publish("food101", train=2, test=1)
    (tmp_path / "food-101/images/sushi/2.jpg").unlink()
    assert "sushi/2.jpg is missing" in refused("food101", tmp_path)


def test_a_set_that_was_unpacked_in_part_is_told(tmp_path):
    """An interrupted unpacking leaves a folder that torchvision takes for whole."""
    write(tmp_path / "imagenette2-320", {f"train/n0144076{index}/1.JPEG": jpeg(1) for index in (4,)})
    message = refused("imagenette", tmp_path)
    assert "holds 1 images of 9,469" in message


def test_a_cut_file_is_told(tmp_path, publish):
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    write(tmp_path / "FashionMNIST/raw", dict.fromkeys(names, struct.pack(">IIII", 2051, 3, 28, 28) + b"few"))
    assert "fashion_mnist is not in" in refused("fashion_mnist", tmp_path)


def test_a_command_that_only_asks_for_changes_does_not_import_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    marks = [open_source(DataConfig(source=name)).fingerprint() for name in PUBLISHED]
    assert len(set(marks)) == len(PUBLISHED)


def test_only_digits_change_their_meaning_in_a_mirror():
    assert [name for name in ("digits", "folder", "parquet", *PUBLISHED) if not mirror_keeps_label(name)] == ["digits"]
