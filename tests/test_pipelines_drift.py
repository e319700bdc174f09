"""`convoy drift` with a model that names the strongest colour of an image."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from test_pipelines_commands import convoy, told
from test_serving_classifier import make_model

from core.errors import UserError
from models.exported.predictor import read_model_manifest
from pipelines import workspace as places
from pipelines.config import Config
from pipelines.operations import drift
from pipelines.operations.samples import SAMPLES
from serving.endpoint.samples import Sampler, model_key


@pytest.fixture
def photos(workspace, prepared, tmp_path, monkeypatch) -> Path:
    """The photographs that were prepared here; a champion there is too."""
    for name in ("raw", "prepared"):
        shutil.copytree(prepared.parent / name, workspace / "data" / name)
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(places, "require_champion", lambda _: (None, model))
    return prepared.parent / "photos"


def test_photographs_of_the_same_kind_have_not_drifted(photos, monkeypatch):
    monkeypatch.setattr(drift, "tell", lambda *_: pytest.fail("nothing to tell"))
    result = convoy("drift", photos)
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"no drift: 120 images against \d+ test images, alarm below p 0.0002", last)


def test_dark_photographs_have_and_somebody_is_told(photos, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(drift, "tell", lambda event, *_: said.append(event))
    dark = tmp_path / "dark"
    dark.mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.3).save(dark / f"{number}.png")
    (dark / "junk.png").write_bytes(b"junk")
    result = convoy("drift", dark)
    assert result.exit_code == 3, result.output
    assert "brightness: 0." in result.stdout
    assert "measures have drifted: 120 images" in result.stdout
    assert said == ["drift"]


def test_files_that_are_no_images(photos, tmp_path):
    (tmp_path / "junk.png").write_bytes(b"junk")
    assert "none of the files is a usable image" in told(convoy("drift", tmp_path / "junk.png"), 2)


def test_what_an_endpoint_has_sampled_is_compared_and_purged(photos, monkeypatch):
    assert "has no samples of" in told(convoy("drift"), 2)
    manifest = read_model_manifest(places.require_champion(None)[1])
    kept = Sampler(SAMPLES, model_key(manifest.name, manifest.version or ""), 100, 7)
    black = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    kept.offer(black, np.full((40, len(manifest.classes)), 1 / len(manifest.classes)))
    kept.close()
    result = convoy("drift")
    assert result.exit_code == 3, result.output
    assert "brightness: 0." in result.stdout
    assert len(convoy("samples", "list").stdout.splitlines()) == 1
    assert "removed 1 files" in convoy("samples", "purge").stdout
    assert convoy("samples", "list").stdout == ""


@pytest.mark.slow
def test_the_flow_says_what_has_drifted(photos, monkeypatch):
    from pipelines import flows

    model = places.require_champion(None)[1]
    manifest = read_model_manifest(model)
    monkeypatch.setattr(flows, "require_champion", lambda _: (None, model))
    with pytest.raises(UserError, match="has no samples of"):
        flows.measure_drift.fn(Config())
    kept = Sampler(SAMPLES, model_key(manifest.name, manifest.version or ""), 100, 7)
    kept.offer(np.zeros((40, 8, 8, 3), dtype=np.uint8), np.full((40, len(manifest.classes)), 1 / 3))
    kept.close()
    assert re.search(r"brightness.* has drifted: 40 images", flows.measure_drift.fn(Config()).message)
