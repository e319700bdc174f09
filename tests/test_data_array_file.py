import numpy as np
import pytest
from images import noise

from core.checksum import file_checksum
from data.preparing.array_file import growing_array, map_array

SHAPE = (4, 4, 3)


def blocks(*lengths):
    return [np.stack([noise(4, 4, 10 * length + seed) for seed in range(length)]) for length in lengths]


def written(path, images):
    with growing_array(path, SHAPE) as array:
        for block in images:
            array.append(block)
    return array


def test_an_array_is_one_of_numpy_and_has_the_checksum_of_its_file(tmp_path):
    path, images = tmp_path / "some.npy", blocks(3, 1, 7)
    array = written(path, images)
    np.testing.assert_array_equal(np.load(path), np.concatenate(images))
    np.testing.assert_array_equal(map_array(path, SHAPE), np.concatenate(images))
    assert (array.num_images, array.checksum) == (11, file_checksum(path))


@pytest.mark.parametrize("kept", [0, 60, 128, -1, -48], ids=lambda kept: f"{kept} bytes")
def test_an_array_that_is_cut_off_is_not_mapped(tmp_path, kept):
    path = tmp_path / "some.npy"
    written(path, blocks(3))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"^some\.npy is cut off, or holds no images of 4 x 4 x 3 bytes$"):
        map_array(path, SHAPE)


def test_an_array_of_another_kind_is_not_mapped(tmp_path):
    path = tmp_path / "some.npy"
    for other in (np.zeros((3, *SHAPE), dtype=np.int8), np.zeros((3, 8, 2, 3), dtype=np.uint8)):
        np.save(path, other)
        with pytest.raises(ValueError, match="holds no images of 4 x 4 x 3 bytes"):
            map_array(path, SHAPE)
