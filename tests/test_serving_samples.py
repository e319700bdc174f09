"""What an endpoint keeps of its requests: bounded, fair, and never in the way of an answer."""

import errno
from pathlib import Path

import numpy as np
import pytest
from test_serving_classifier import make_model, picture

from models.judging.drift import measure_traits
from serving.config import SAMPLES_DIR
from serving.endpoint import samples
from serving.endpoint.classifier import Classifier
from serving.endpoint.samples import DAY, Sampler, model_key, open_sampler, read_samples, remove_old

NOON = 1_764_504_000.0  # 2025-11-30 12:00 UTC
PIXELS = np.zeros((1, 4, 4, 3), dtype=np.uint8)


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def sampler(folder: Path, clock: Clock, size: int = 10, days: float = 7) -> Sampler:
    return Sampler(folder, "m-v1", size, days, now=clock, seed=0)


def ask(one: Sampler, *values: int) -> None:
    for value in values:
        one.offer(PIXELS, np.array([[value, 0]], dtype=np.float32))


def test_each_image_of_a_day_has_the_same_chance(tmp_path, clock):
    kept = np.zeros(100)
    for seed in range(400):
        one = Sampler(tmp_path / str(seed), "m-v1", 10, 7, now=clock, seed=seed)
        ask(one, *range(100))
        one.close()
        window = read_samples(tmp_path / str(seed), "m-v1")
        assert len(window.traits) == 10
        kept[window.probabilities[:, 0].astype(int)] += 1
    # Binomial: 400 draws of chance 0.1 have the mean 40 and the deviation 6.
    assert (abs(kept - 40) < 5 * 6).all()
    assert abs(kept[:50].sum() - 2000) < 5 * 32


def test_an_endpoint_that_starts_again_goes_on(tmp_path, clock):
    first = sampler(tmp_path, clock)
    ask(first, *range(30))
    first.close()
    second = sampler(tmp_path, clock)
    ask(second, *range(30, 60))
    second.close()
    with np.load(tmp_path / "2025-11-30-m-v1.npz") as kept:
        assert (len(kept["rows"]), int(kept["num_seen"])) == (10, 60)


def test_the_next_day_has_a_file_of_its_own_and_old_ones_go(tmp_path, clock):
    one = sampler(tmp_path, clock, days=2)
    for _ in range(5):
        ask(one, 1, 2)
        clock.now += DAY
    one.close()
    assert sorted(path.name[:10] for path in tmp_path.glob("*.npz")) == ["2025-12-03", "2025-12-04"]
    assert len(read_samples(tmp_path, "m-v1").traits) == 4
    assert read_samples(tmp_path, "m-v2") is None
    assert len(remove_old(tmp_path, -1, clock.now)) == 2


def test_samples_are_written_while_requests_come(tmp_path, clock):
    one = sampler(tmp_path, clock)
    ask(one, 1)
    assert read_samples(tmp_path, "m-v1") is None
    clock.now += samples.FLUSH_SECONDS
    ask(one, 2)
    assert len(read_samples(tmp_path, "m-v1").traits) == 2
    one.close()


def test_a_full_disk_stops_sampling_and_nothing_else(tmp_path, clock, monkeypatch, caplog):
    one = sampler(tmp_path, clock)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(samples.np, "savez", full)
    for _ in range(3):
        clock.now += samples.FLUSH_SECONDS
        ask(one, 1)
    assert caplog.text.count("samples: stopped") == 1
    assert "requests are answered as before" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    one.close()


def test_an_endpoint_samples_what_clients_sent(tmp_path, caplog):
    classifier = Classifier(make_model(tmp_path / "model"))
    manifest = classifier.manifest
    assert open_sampler({}, manifest, 10, 7) is None
    (tmp_path / "file").touch()
    assert open_sampler({SAMPLES_DIR: str(tmp_path / "file")}, manifest, 10, 7) is None
    assert "names no folder" in caplog.text
    assert "none are kept in" in caplog.text
    environment = {SAMPLES_DIR: str(tmp_path / "samples")}
    classifier.observe = open_sampler(environment, manifest, 10, 7)
    assert open_sampler(environment, manifest, 10, 7) is None
    assert "another endpoint keeps them" in caplog.text
    pixels = classifier.decode(picture((240, 20, 10)))[None]
    probabilities = classifier.predict_sent(pixels)
    classifier.observe.__self__.close()
    window = read_samples(tmp_path / "samples", model_key(manifest.name, manifest.version or ""))
    assert np.array_equal(window.probabilities, probabilities)
    assert np.array_equal(window.traits, measure_traits(pixels))
