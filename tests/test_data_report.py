import io

import numpy as np
import pytest
from images import encode, noise, photos, ppm, reference, write
from PIL import Image

from core.errors import UserError
from data.batches.sample import first_test_image
from data.config import DataConfig
from data.images.decode import Preprocessing, decode
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.quality.report import as_markdown, data_report

SPLITS = ("train", "val", "test")


def prepared(folder, files, size=8):
    config = DataConfig(source="folder", path=write(folder / "source", files), size=size)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


def given_splits(num_images=4, **options):
    return {
        f"{split}/{path}": content
        for seed, split in enumerate(SPLITS)
        for path, content in photos(num_images, seed=seed, **options).items()
    }


def test_the_report_counts_every_image(tmp_path):
    files = {**given_splits(), "train/cat/broken.jpg": b"x", "stray.txt": b"x"}
    files["train/cat/copy.ppm"] = files["train/cat/0000.ppm"]
    del files["val/dog/0000.ppm"]
    report = data_report(prepared(tmp_path, files))
    assert report["num_images"] == 24
    assert report["num_rejected"] == 2
    assert report["rejected"] == [
        {"path": "stray.txt", "reason": "not in a class folder"},
        {"path": "train/cat/broken.jpg", "reason": "not an image"},
    ]
    assert report["splits"] == {"train": 9, "val": 7, "test": 8}
    assert report["classes"] == {"cat": 13, "dog": 11}
    assert report["num_duplicates"] == 1
    assert report["num_images"] + report["num_rejected"] == len(files)


def test_a_class_that_is_not_measured_is_warned_of(tmp_path):
    files = {path: content for path, content in given_splits().items() if not path.startswith("test/dog")}
    warnings = data_report(prepared(tmp_path, files))["warnings"]
    assert "class 'dog' has no test images: its accuracy there is not measured" in warnings


def test_names_do_not_break_the_page(tmp_path):
    names = ("a|b", "c\nd")
    files = {**given_splits(classes=names), "train/a|b/x\ny.jpg": b"x"}
    lines = as_markdown(data_report(prepared(tmp_path, files))).splitlines()
    assert "| test | 8 |" in lines
    assert r"| a\|b | 12 |" in lines
    assert "| c d | 12 |" in lines
    assert r"- `'train/a|b/x\ny.jpg'`: not an image" in lines


def test_a_long_list_is_cut_and_says_so(tmp_path):
    broken = {f"train/cat/{index:03d}.jpg": b"x" for index in range(105)}
    report = data_report(prepared(tmp_path, {**given_splits(), **broken}))
    assert len(report["rejected"]) == 105
    page = as_markdown(report)
    assert page.count(": not an image") == 100
    assert "- and 5 more: `convoy data report --json` lists all" in page


def test_nothing_prepared_is_told(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json is missing: prepare the images"):
        data_report(tmp_path)


@pytest.mark.parametrize("crop", [8, 6, 5])
def test_the_sample_is_a_test_image_as_it_came_and_as_it_is_stored(tmp_path, crop):
    files = given_splits(width=8, height=20)
    folder = prepared(tmp_path, files)
    sample = first_test_image(tmp_path / "raw", folder, crop)
    assert sample.origin.startswith("test/")
    assert sample.image == files[sample.origin]
    start = (8 - crop) // 2
    stored = reference(Image.open(io.BytesIO(sample.image)), 8)
    np.testing.assert_array_equal(sample.prepared, stored[start : start + crop, start : start + crop])
    # What an endpoint makes of the same bytes.
    np.testing.assert_array_equal(
        sample.prepared, decode(sample.image, Preprocessing(size=8, crop=crop, max_pixels=10**6))
    )


def test_a_sample_of_other_images_is_told(tmp_path):
    folder = prepared(tmp_path, given_splits())
    other = {f"{name}/1.png": encode(noise(8, 8, seed), "PNG") for seed, name in enumerate(("cat", "dog"), start=50)}
    ingest(
        DataConfig(source="folder", path=write(tmp_path / "other", {**other, "dog/2.ppm": ppm(noise(8, 8, 52))})),
        tmp_path / "raw",
        tmp_path / "state.json",
    )
    with pytest.raises(UserError, match="raw does not hold the images that were prepared: ingest them again with"):
        first_test_image(tmp_path / "raw", folder, 8)
