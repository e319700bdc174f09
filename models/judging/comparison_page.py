"""A comparison of two models as one page that needs nothing else: what is newly broken comes first."""

import base64
import io
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.pages import milliseconds, percent, render, size
from data.batches.shards import PreparedImages, center_crop
from data.images.decode import Pixels
from data.manifest import read_data_manifest
from models.exported.saliency import weigh_evidence
from models.judging.comparison import ChangedImage, ModelComparison
from models.judging.measured import Measured

TEMPLATE = Path(__file__).with_suffix("") / "page.html.j2"
NUM_BROKEN, NUM_FIXED = 24, 12
NUM_EXPLAINED = 6
"""Of the broken images, and of the fixed ones, so many have maps of evidence: each takes 50 predictions of a model."""
NUM_CLASSES = 40
"""Where there are more classes, those with the largest losses and the largest gains are shown, half of each."""
SMALL = 96
"""Pictures with fewer pixels on a side are kept without loss, and are enlarged pixel by pixel."""

FOR, AGAINST = np.array([230, 120, 0]), np.array([0, 110, 200])
TONES = {"better": "good", "no worse": "good", "worse": "bad", "too few images to tell": "unsure"}


class _Shown(NamedTuple):
    image: ChangedImage
    pictures: Sequence[tuple[str, str]]
    """what each shows, and its data URI"""
    is_small: bool


def comparison_page(found: ModelComparison, champion: Measured, challenger: Measured, prepared: Path) -> str:
    """Write the page of a comparison of two models, which are asked for the evidence in some of the images."""
    draw = _Draw(prepared, champion, challenger, found)
    half, by_class = NUM_CLASSES // 2, found.by_class
    return render(
        TEMPLATE,
        found=found,
        tone=TONES[found.overall.verdict],
        broken=draw.all(found.broken[:NUM_BROKEN]),
        fixed=draw.all(found.fixed[:NUM_FIXED]),
        rows=list(_rows(found)),
        classes=by_class if len(by_class) <= NUM_CLASSES else by_class[:half] + by_class[-half:],
    )


def _rows(found: ModelComparison) -> list[tuple[str, str, str]]:
    """Give the table of both models, cell by cell."""
    a, b = found.champion, found.challenger
    sides = [
        (
            ("accuracy", f"{percent(one.accuracy)} ({percent(one.low)} to {percent(one.high)})"),
            ("expected calibration error", percent(one.calibration_error)),
            ("loss, nats", f"{one.loss:.4f}"),
            ("model file, fp32", size(one.num_bytes)),
            ("model file, int8", size(one.int8_bytes) if one.int8_bytes else "none"),
            *((f"batch of {count}", milliseconds(seconds)) for count, seconds in one.seconds.items()),
            ("network", f"{one.network}, {one.input_size} px"),
            ("run", one.run_id[:8]),
            ("data version", one.data_version[:8]),
        )
        for one in (a, b)
    ]
    return [(name, first, second) for (name, first), (_, second) in zip(*sides, strict=True)]


class _Draw:
    """Draws test images, as they were prepared today and with what each model sees in them."""

    def __init__(self, prepared: Path, champion: Measured, challenger: Measured, found: ModelComparison) -> None:
        self._images = PreparedImages(prepared, read_data_manifest(prepared), "test")
        self._models = ((found.champion.title, champion), (found.challenger.title, challenger))

    def all(self, images: Sequence[ChangedImage]) -> list[_Shown]:
        """Draw images, the first of them with evidence."""
        return list(starmap(self._one, enumerate(images)))

    def _one(self, number: int, image: ChangedImage) -> _Shown:
        (square,) = self._images.gather(np.array([image.index]))
        pictures = [("image", _uri(square))]
        if number < NUM_EXPLAINED:
            answers = (image.champion.label, image.challenger.label)
            for (title, model), label in zip(self._models, answers, strict=True):
                pictures.append((title, _uri(_explain(model, image.index, label))))
        return _Shown(image, pictures, len(square) < SMALL)


def _explain(model: Measured, index: int, label: str) -> Pixels:
    """Paint what speaks for a model's answer, and what against it, over what the model sees."""
    spec = model.manifest.preprocessing
    (pixels,) = center_crop(model.images.gather(np.array([index])), spec.crop)
    evidence = weigh_evidence(model.predictor, pixels, model.manifest.classes.index(label))
    strength = _enlarge(evidence / max(np.abs(evidence).max(), 1e-9), len(pixels))[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    alpha = 0.65 * np.abs(strength)
    painted = grey * (1 - alpha) + np.where(strength > 0, FOR, AGAINST) * alpha
    return np.asarray(painted.clip(0, 255), dtype=np.uint8)


def _enlarge(values: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float32]:
    picture = Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _uri(pixels: Pixels) -> str:
    content, kind = io.BytesIO(), "PNG" if len(pixels) < SMALL else "JPEG"
    Image.fromarray(pixels).save(content, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
