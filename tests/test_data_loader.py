import itertools

import numpy as np
import pytest
import torch
from images import noise, photos, write

from data.batches.loader import Batches, Share
from data.batches.shards import PreparedImages, verify
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare

SIZE = 8


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Three splits in several shards."""
    folder = tmp_path_factory.mktemp("prepared")
    config = DataConfig(source="folder", path=write(folder / "source", photos(400, width=8, height=8)), size=SIZE)
    ingest(config, folder / "raw", folder / "state.json")
    return folder / "prepared", prepare(config, folder / "raw", folder / "prepared", folder / "parts")


@pytest.fixture(params=["train", "val", "test"])
def split(request, prepared):
    return PreparedImages(*prepared, request.param), request.param


@pytest.fixture
def train(prepared):
    return PreparedImages(*prepared, "train")


def plain(prepared, split):
    """All images of a split, without any memory map."""
    folder, manifest = prepared
    return np.concatenate([np.load(folder / shard.name) for shard in manifest.shards if shard.split == split])


def test_a_split_is_its_shards_in_order(prepared, split):
    images, name = split
    folder, manifest = prepared
    assert len([shard for shard in manifest.shards if shard.split == name]) > 1
    assert len(images) == manifest.num_in(name)
    np.testing.assert_array_equal(images.gather(np.arange(len(images))), plain(prepared, name))
    np.testing.assert_array_equal(images.labels, np.load(folder / f"{name}-labels.npy"))


def test_gather_is_a_plain_loop(prepared, train):
    everything = plain(prepared, "train")
    draws = np.random.default_rng(0)
    chosen = [draws.integers(0, len(train), size) for size in (1, 7, 300)]
    chosen += [np.array([], dtype=np.int64), np.array([5, 5, 0, len(train) - 1, 5]), np.arange(len(train))[::-1]]
    for indices in chosen:
        gathered = train.gather(indices)
        assert (gathered.dtype, gathered.shape) == (np.uint8, (len(indices), SIZE, SIZE, 3))
        for image, index in zip(gathered, indices, strict=True):
            np.testing.assert_array_equal(image, everything[index])


def test_gathered_images_are_a_copy(train):
    indices = np.arange(10)
    train.gather(indices)[:] = 0
    assert train.gather(indices).any()


def test_intact_shards_are_verified(prepared):
    verify(*prepared)


def as_numbers(batches):
    """Label and first pixels of every image, in the order of the batches."""
    return [
        (label, *image.flatten().tolist()[:12])
        for images, labels in batches
        for image, label in zip(images, labels.tolist(), strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_in_order_every_image_comes_once(split, batch_size):
    images, _ = split
    batches = list(Batches(images, batch_size, shuffle_seed=None))
    sizes = [len(labels) for _, labels in batches]
    assert set(sizes[:-1]) <= {batch_size}
    assert sum(sizes) == len(images)
    assert len(batches) == len(Batches(images, batch_size, shuffle_seed=None)) == -(-len(images) // batch_size)
    expected = images.gather(np.arange(len(images)))
    np.testing.assert_array_equal(torch.cat([pixels for pixels, _ in batches]), expected)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), images.labels)


def test_batches_are_bytes_and_numbers(train):
    pixels, labels = next(iter(Batches(train, 32, shuffle_seed=0)))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (32, SIZE, SIZE, 3))
    assert (labels.dtype, labels.shape) == (torch.int64, (32,))


def test_a_shuffled_epoch_is_a_permutation(train):
    batches = Batches(train, 1, shuffle_seed=0)
    assert len(batches) == len(train)
    assert as_numbers(batches) != as_numbers(Batches(train, 1, shuffle_seed=None))
    assert sorted(as_numbers(batches)) == sorted(as_numbers(Batches(train, 1, shuffle_seed=None)))


def test_the_last_smaller_batch_of_a_shuffled_epoch_is_left_out(train):
    batch_size = 64
    assert len(train) % batch_size
    batches = Batches(train, batch_size, shuffle_seed=0)
    sizes = [len(labels) for _, labels in batches]
    assert sizes == [batch_size] * (len(train) // batch_size)
    assert len(batches) == len(sizes)
    # What is left out has its turn in another epoch.
    seen = set()
    for batches.epoch in range(8):
        seen |= set(as_numbers(batches))
    assert len(seen) == len(set(as_numbers(Batches(train, 1, shuffle_seed=None))))


def test_few_images_are_one_batch(train):
    batches = Batches(train, len(train) + 1, shuffle_seed=0)
    assert [len(labels) for _, labels in batches] == [len(train)]
    assert (len(batches), batches.batch_size) == (1, len(train))


def test_the_order_follows_from_seed_and_epoch_alone(train):
    def order(seed, epoch):
        batches = Batches(train, 64, shuffle_seed=seed)
        batches.epoch = epoch
        return as_numbers(batches)

    first = order(0, 3)
    np.random.default_rng(1).random()
    torch.manual_seed(5)
    assert order(0, 3) == first
    orders = [order(seed, epoch) for seed, epoch in itertools.product(range(3), range(3))]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    # Not by iterating: the epoch is set by whoever trains.
    batches = Batches(train, 64, shuffle_seed=0)
    assert as_numbers(batches) == as_numbers(batches)


@pytest.mark.parametrize("seed", [None, 0])
def test_processes_share_each_batch(train, seed):
    whole = list(Batches(train, 60, shuffle_seed=seed))
    shares = [list(Batches(train, 60, shuffle_seed=seed, share=Share(rank, 3))) for rank in range(3)]
    assert [len(batches) for batches in shares] == [len(whole)] * 3
    for step, (images, labels) in enumerate(whole):
        for rank, batches in enumerate(shares):
            assert torch.equal(batches[step][0], images[rank::3])
            assert torch.equal(batches[step][1], labels[rank::3])


@pytest.mark.parametrize("step", [0, 1, 4])
def test_an_epoch_goes_on_in_the_middle(train, step):
    whole, first, second = (Batches(train, 32, shuffle_seed=0) for _ in range(3))
    for batches in (whole, first, second):
        batches.epoch = 2
    list(itertools.islice(first, step))
    second.load_state_dict(first.state_dict())
    assert as_numbers(second) == as_numbers(whole)[32 * step :]
    assert as_numbers(second) == as_numbers(whole)


def test_after_the_last_batch_comes_the_next_epoch(train):
    first, second = (Batches(train, 32, shuffle_seed=0) for _ in range(2))
    list(first)
    second.load_state_dict(first.state_dict())
    assert len(list(second)) == len(second)


def test_batches_for_a_gpu_are_read_ahead_and_pinned(train, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    ahead = Batches(train, 32, shuffle_seed=0, device=torch.device("cuda"))
    iterator = iter(ahead)
    first = next(iterator)
    assert len(pinned) >= 2
    expected = as_numbers(Batches(train, 32, shuffle_seed=0))
    assert as_numbers([first, *iterator]) == expected
    assert len(pinned) == 2 * len(ahead)


def test_images_may_stay_on_the_device(train):
    resident = Batches(train, 32, shuffle_seed=0, device=torch.device("cpu"), resident=True)
    assert as_numbers(resident) == as_numbers(Batches(train, 32, shuffle_seed=0))


def test_noise_tells_images_apart():
    """The tests above recognize images by their first pixels."""
    assert len({noise(8, 8, (0, number, index)).tobytes()[:12] for number in (0, 1) for index in range(400)}) == 800
