import numpy as np
import pytest
from images import encode, noise, reference, write
from PIL import Image

from core.errors import UserError
from data.batches.originals import OriginalImages
from data.batches.shards import PreparedImages
from data.config import DataConfig
from data.images.decode import Preprocessing
from data.ingest.stage import ingest
from data.manifest import read_data_manifest
from data.preparing.stage import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of noise; one image is there twice."""
    root = tmp_path_factory.mktemp("data")
    files = {
        f"test/{name}/{index}.png": encode(noise(26, 26, (number, index)), "PNG")
        for number, name in enumerate(("cat", "dog"))
        for index in range(9)
    }
    files |= {f"train/{name}/{index}.png": encode(noise(26, 26, (7, number, index)), "PNG")
              for number, name in enumerate(("cat", "dog")) for index in range(9)}  # fmt: skip
    files["test/cat/copy.png"] = files["test/cat/3.png"]
    config = DataConfig(source="folder", path=write(root / "photos", files), size=20)
    ingest(config, root / "raw", root / "state.json")
    prepare(config, root / "raw", root / "prepared", root / "parts")
    return root


def originals(folder, size, crop):
    spec = Preprocessing(size=size, crop=crop, max_pixels=10_000)
    return OriginalImages(folder / "raw", folder / "prepared", "test", spec)


def prepared(folder):
    return PreparedImages(folder / "prepared", read_data_manifest(folder / "prepared"), "test")


def test_in_the_size_of_the_preparation_they_are_the_prepared_images(folder):
    ours, theirs = originals(folder, 20, 20), prepared(folder)
    assert len(ours) == len(theirs) == 19
    chosen = np.array([4, 18, 0, 7, 7])
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.gather(chosen), theirs.gather(chosen))


def test_in_another_size_they_are_decoded_from_the_original_bytes(folder):
    pixels = originals(folder, 16, 12).gather(np.arange(19))
    assert pixels.shape == (19, 12, 12, 3)
    files = sorted((folder / "photos/test/cat").iterdir())
    expected = {reference(Image.open(file), 16)[2:14, 2:14].tobytes() for file in files}
    assert {image.tobytes() for image in pixels[originals(folder, 16, 12).labels == 0]} == expected


def test_originals_that_are_gone_are_told(folder, tmp_path):
    with pytest.raises(UserError, match="does not hold 18 of the images"):
        OriginalImages(tmp_path, folder / "prepared", "test", Preprocessing(size=8, crop=8, max_pixels=10_000))
