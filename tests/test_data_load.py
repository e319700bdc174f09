import numpy as np
import pytest

from data.load import Batches
from data.manifest import ColorStatistics, DataManifest, Shard
from data.shards import PreparedImages

SIZES = (5, 1, 14)
AXES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
COLOR = ColorStatistics(mean=(0, 0, 0), std=(1, 1, 1), eigenvalues=(0, 0, 1), eigenvectors=AXES)


@pytest.fixture
def images(tmp_path):
    """Three shards of 2x2 px; each image's first byte is its index."""
    start, shards = 0, []
    for number, size in enumerate(SIZES):
        pixels = np.zeros((size, 2, 2, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0] = np.arange(start, start + size)
        np.save(tmp_path / f"train-{number}.npy", pixels)
        shards.append(Shard(split="train", name=f"train-{number}.npy", num_images=size, sha256=""))
        start += size
    np.save(tmp_path / "train-labels.npy", np.arange(sum(SIZES)) % 3)
    manifest = DataManifest(
        source="folder",
        mirror_keeps_label=True,
        size=2,
        max_pixels=4,
        classes=("a", "b", "c"),
        splits={"train": {"a": 7, "b": 7, "c": 6}, "val": {}, "test": {}},
        color=COLOR,
        rejected=(),
        shards=tuple(shards),
    )
    return PreparedImages(tmp_path, manifest, "train")


def epoch(batches, number=0):
    batches.epoch = number
    drawn = [(pixels[:, 0, 0, 0].tolist(), labels.tolist()) for pixels, labels in batches]
    assert len(drawn) == len(batches)
    return [index for indices, _ in drawn for index in indices], [label for _, labels in drawn for label in labels]


def test_gather_is_a_loop_over_the_images(images):
    wanted = np.array([19, 0, 5, 5, 6, 4])
    assert images.gather(wanted)[:, 0, 0, 0].tolist() == wanted.tolist()


def test_in_order_every_image_comes_once(images):
    indices, labels = epoch(Batches(images, 8, shuffle_seed=None))
    assert indices == list(range(20))
    assert labels == [index % 3 for index in range(20)]


def test_a_shuffled_epoch_leaves_the_last_smaller_batch_out(images):
    indices, labels = epoch(Batches(images, 8, shuffle_seed=0))
    assert len(indices) == len(set(indices)) == 16
    assert labels == [index % 3 for index in indices]


def test_epochs_differ_and_follow_from_the_seed(images):
    first, again, other = (Batches(images, 5, shuffle_seed=seed) for seed in (0, 0, 1))
    assert epoch(first, 0) == epoch(again, 0)
    assert epoch(first, 3) == epoch(again, 3)
    assert epoch(first, 0) != epoch(first, 1)
    assert epoch(first, 0) != epoch(other, 0)
    assert sorted(epoch(first, 1)[0]) == list(range(20))


def test_a_batch_is_no_larger_than_the_data(images):
    assert len(epoch(Batches(images, 64, shuffle_seed=0))[0]) == 20
