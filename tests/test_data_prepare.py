import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import encode, files_in, noise, photos, ppm, reference, write
from PIL import Image

from core.errors import UserError
from data.batches.shards import verify
from data.config import DataConfig
from data.images.decode import Preprocessing, decode
from data.ingest.stage import ingest
from data.manifest import read_data_manifest
from data.preparing import shard as part_module
from data.preparing import workers
from data.preparing.color_statistics import ColorCounter, color_statistics
from data.preparing.shard import read_part
from data.preparing.stage import prepare
from data.quality.traits import perceptual_hashes

SIZE = 8


def given_splits(num_images=4, classes=("cat", "dog")):
    """Different images for each split and class."""
    return {
        f"{split}/{path}": content
        for number, split in enumerate(("train", "val", "test"))
        for path, content in photos(num_images, classes=classes, seed=number, width=8, height=12 + 4 * number).items()
    }


def prepared(folder, files, **options):
    """Ingest and prepare; returns the folder of arrays."""
    config = DataConfig(source="folder", path=write(folder / "source", files), size=SIZE, **options)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


def arrays(folder, split):
    shards = [shard.name for shard in read_data_manifest(folder).shards if shard.split == split]
    return np.concatenate([np.load(folder / name) for name in shards]), np.load(folder / f"{split}-labels.npy")


def index_of(folder):
    return pq.read_table(folder / "index.parquet").to_pylist()


def test_arrays_labels_and_index_agree(tmp_path):
    files = given_splits()
    folder = prepared(tmp_path, files)
    manifest = read_data_manifest(folder)
    assert manifest.classes == ("cat", "dog")
    for split in ("train", "val", "test"):
        images, labels = arrays(folder, split)
        rows = [row for row in index_of(folder) if row["split"] == split]
        assert (images.dtype, images.shape) == (np.uint8, (8, SIZE, SIZE, 3))
        assert (labels.dtype, labels.shape) == (np.int64, (8,))
        assert [manifest.classes[label] for label in labels] == [row["label"] for row in rows]
        for image, row in zip(images, rows, strict=True):
            assert row["origin"].startswith(f"{split}/{row['label']}/")
            original = Image.open(io.BytesIO(files[row["origin"]]))
            np.testing.assert_array_equal(image, reference(original, SIZE))
    assert sorted(row["origin"] for row in index_of(folder)) == sorted(files)


def test_the_manifest_counts_every_image(tmp_path):
    files = given_splits()
    broken = {"train/cat/broken.jpg": b"not an image", "val/dog/empty.jpg": b"", "stray.txt": b"x"}
    folder = prepared(tmp_path, {**files, **broken})
    manifest = read_data_manifest(folder)
    assert manifest.num_images == 24
    assert {split: manifest.num_in(split) for split in manifest.splits} == {"train": 8, "val": 8, "test": 8}
    assert manifest.splits == {split: {"cat": 4, "dog": 4} for split in ("train", "val", "test")}
    assert [(image.path, image.reason) for image in manifest.rejected] == [
        ("stray.txt", "not in a class folder"),
        ("train/cat/broken.jpg", "not an image"),
        ("val/dog/empty.jpg", "empty file"),
    ]
    assert manifest.num_images + len(manifest.rejected) == len(files) + len(broken)
    assert (manifest.source, manifest.size, manifest.mirror_keeps_label) == ("folder", SIZE, True)
    assert sum(shard.num_images for shard in manifest.shards) == 24
    verify(folder, manifest)


def test_color_statistics_are_those_of_all_training_pixels(tmp_path):
    folder = prepared(tmp_path, given_splits(num_images=20))
    images, _ = arrays(folder, "train")
    pixels = images.reshape(-1, 3) / 255
    color = read_data_manifest(folder).color
    np.testing.assert_allclose(color.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(color.std, pixels.std(axis=0), atol=1e-6)
    covariance, vectors = np.cov(pixels.T, bias=True), np.array(color.eigenvectors)
    assert sorted(color.eigenvalues) == list(color.eigenvalues)
    np.testing.assert_allclose(covariance @ vectors, vectors * color.eigenvalues, atol=3e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=3e-6)


@pytest.mark.parametrize("block_bytes", [1, 2 * 3 * SIZE**2, 2**21])
def test_images_are_noted_as_each_by_itself_and_broken_ones_leave_the_others(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(part_module, "BLOCK_BYTES", block_bytes)
    files = given_splits() | {"train/cat/broken.png": b"no image"}
    files["train/dog/cut.png"] = encode(Image.fromarray(noise(40, 60)), "PNG")[:-999]
    folder = prepared(tmp_path, files)
    parts = [read_part(record) for record in sorted((tmp_path / "parts").glob("*.json"))]
    reasons = {image.path: image.reason for part in parts for image in part.rejected}
    assert reasons.keys() == {"train/cat/broken.png", "train/dog/cut.png"}
    assert reasons["train/cat/broken.png"] == "not an image"
    for part in parts:
        for shard in part.shards:
            images, rows = np.load(folder / shard.name), part.rows[shard.split]
            assert [row.look for row in rows] == [perceptual_hashes(image[None])[0] for image in images]
            for image, row in zip(images, rows, strict=True):
                spec = Preprocessing(size=SIZE, crop=SIZE, max_pixels=10**6)
                np.testing.assert_array_equal(image, decode(files[row.origin], spec))


def statistics_of(*parts):
    """Each part, [N, H, W, 3], counted by itself."""
    counters = [ColorCounter() for _ in parts]
    for counter, images in zip(counters, parts, strict=True):
        counter.add(images)
    return color_statistics(counter.sums for counter in counters)


def test_color_statistics_do_not_depend_on_order_or_parts():
    images = np.stack([noise(31, 17, seed) for seed in range(5)])
    one_by_one = images[:, None]
    assert statistics_of(*one_by_one) == statistics_of(*one_by_one[::-1]) == statistics_of(images)


def test_signs_of_the_axes_are_fixed():
    vectors = np.array(statistics_of(noise(64, 64)[None]).eigenvectors)
    assert all(column[np.abs(column).argmax()] > 0 for column in vectors.T)


def test_grey_images_vary_along_one_axis():
    grey = np.repeat(noise(32, 32)[..., :1], 3, axis=2)
    color = statistics_of(grey[None])
    third = 3**-0.5  # red, green and blue alike
    np.testing.assert_allclose(color.eigenvectors, [[0, 0, third]] * 3, atol=1e-6)
    np.testing.assert_allclose(color.eigenvalues, [0, 0, 3 * (grey / 255).var()], atol=1e-5)
    assert "-0.0" not in color.model_dump_json()


def test_of_large_images_32_pixels_a_side_are_enough():
    image = noise(128, 192)
    assert statistics_of(image[None]) == statistics_of(image[None, ::4, ::4])


def test_images_without_any_difference_can_be_divided_by_their_deviation():
    assert statistics_of(np.full((1, 4, 4, 3), 7, dtype=np.uint8)).std == (0.001, 0.001, 0.001)


def test_equal_images_are_prepared_to_equal_bytes_by_processes(tmp_path, monkeypatch):
    files = photos(300, width=8, height=8)
    one = prepared(tmp_path / "one", files)
    monkeypatch.setattr(workers, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    two = prepared(tmp_path / "two", files)
    assert len(list((tmp_path / "two" / "raw").glob("*.parquet"))) > 1
    assert files_in(one) == files_in(two)


def test_a_changed_configuration_leaves_nothing_behind(tmp_path):
    files = given_splits()
    folder = prepared(tmp_path / "changed", files)
    (tmp_path / "changed" / "source" / "train" / "cat" / "0000.ppm").unlink()
    prepared(tmp_path / "changed", {})
    fresh = {path: content for path, content in files.items() if path != "train/cat/0000.ppm"}
    assert files_in(folder) == files_in(prepared(tmp_path / "fresh", fresh))
    assert len(list((tmp_path / "changed" / "parts").iterdir())) == 1


BROKEN = {f"dog/{index}.jpg": b"not an image" for index in range(3)}
FAULTS = {
    "one image": (
        {**given_splits(), "train/ape/1.ppm": ppm(noise(8, 8, 99))},
        "^class 'ape' has one usable image, two are needed: add images of it, or remove the class$",
    ),
    "one usable image": (
        {**given_splits(), "train/ape/1.ppm": ppm(noise(8, 8, 99)), "train/ape/2.jpg": b"x"},
        "^class 'ape' has one usable image",
    ),
    "a name in two lines": (
        {**given_splits(), "train/a\npe/1.ppm": ppm(noise(8, 8, 99))},
        r"^class 'a\\npe' has one usable image",
    ),
    "nothing to train on": (
        {**given_splits(), **{f"test/ape/{index}.ppm": ppm(noise(8, 8, 99 + index)) for index in range(5)}},
        "^class 'ape' has 5 images, none of them to train on: add images of it, or remove the class",
    ),
    "a class of broken images": (
        {**photos(40), **{f"ape/{index}.jpg": b"x" for index in range(3)}},
        r"^class 'ape' has no usable image among 3, the first is 'ape/0.jpg' \(not an image\): add images of it",
    ),
    "everything rejected": (
        {**BROKEN, "cat/1.jpg": b"not an image"},
        r"^class 'cat' has no usable image among 1, the first is 'cat/1.jpg' \(not an image\)",
    ),
    "a split of broken images": (
        {**{path: content for path, content in given_splits().items() if path[:4] != "val/"}, "val/cat/1.jpg": b"x"},
        "^none of the images in the val folder can be used: mend them, or remove the folder$",
    ),
    "too few for a split": (
        photos(2),
        r"^no image falls into the (test|val) split: add images, raise data.(test|val)_fraction, or set another",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_trained_on_is_told(tmp_path, fault):
    files, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as error:
        prepared(tmp_path, files)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "prepared" / "manifest.json").exists()


def test_a_missing_split_is_taken_from_train(tmp_path):
    files = {path: content for path, content in given_splits(num_images=60).items() if not path.startswith("val/")}
    folder = prepared(tmp_path, files, val_fraction=0.4)
    origins = {row["origin"]: row["split"] for row in index_of(folder)}
    assert {split for origin, split in origins.items() if origin.startswith("test/")} == {"test"}
    assert {split for origin, split in origins.items() if origin.startswith("train/")} == {"train", "val"}


def test_a_manifest_that_is_missing_or_foreign(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json is missing: prepare the images with `convoy data prepare`$"):
        read_data_manifest(tmp_path)
    folder = prepared(tmp_path, given_splits())
    path = folder / "manifest.json"
    for content in (b"", b"{", json.dumps({**json.loads(path.read_bytes()), "of tomorrow": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or of another version of Convoy: prepare the images again"):
            read_data_manifest(folder)


def test_half_ingested_images_are_not_prepared(tmp_path):
    prepared(tmp_path, given_splits())
    (tmp_path / "raw" / "rejected.json").unlink()
    with pytest.raises(UserError, match="is missing or half-written: ingest the images with `convoy data ingest`"):
        prepare(DataConfig(size=SIZE), tmp_path / "raw", tmp_path / "prepared", tmp_path / "parts")


def test_photographs_of_all_kinds_in_one_folder(tmp_path):
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
    files = {
        f"{split}/{name}/1.{kind}": encode(noise(12, 9, (number, seed)), file_format)
        for seed, split in enumerate(("train", "val", "test"))
        for name in ("cat", "dog")
        for number, (file_format, kind) in enumerate(kinds.items(), start=100 * (name == "dog"))
    }
    manifest = read_data_manifest(prepared(tmp_path, files))
    assert manifest.rejected == ()
    assert manifest.num_images == len(files) == 3 * 2 * 6
