"""Test images that visitors of an endpoint's page can try, if the owner allows that."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data.batches.shards import PreparedImages
from data.images.decode import Pixels
from data.manifest import read_data_manifest
from serving.endpoint.answers import Example, Examples

MAX_SIDE = 256
"""Longest side, in pixels. Larger images are shrunk."""


def choose_examples(prepared: Path, count: int) -> Examples:
    """Choose `count` test images from the folder `prepared`, of as many classes as possible, ordered by class.

    The choice depends only on the data, not on a model.

    Raises:
        UserError: there are no prepared images, or they are damaged.

    """
    manifest = read_data_manifest(prepared)
    images = PreparedImages(prepared, manifest, "test")
    order = np.argsort(images.labels, kind="stable")
    classes, starts = np.unique(images.labels[order], return_index=True)
    by_class = np.split(order, starts[1:])
    if count < len(classes):
        chosen = [by_class[index][0] for index in np.linspace(0, len(classes) - 1, count).round().astype(int)]
    else:
        ranked = sorted((rank, index) for rank_of in by_class for rank, index in enumerate(rank_of))
        chosen = sorted((index for _, index in ranked[:count]), key=lambda index: int(images.labels[index]))
    labels = [manifest.classes[images.labels[index]] for index in chosen]
    pictures = images.gather(np.array(chosen, dtype=np.int64))
    return {"examples": [_example(*pair) for pair in zip(labels, pictures, strict=True)]}


def _example(label: str, pixels: Pixels) -> Example:
    picture, png = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    picture.save(png, "PNG", optimize=True)
    return {"label": label, "image": base64.b64encode(png.getvalue()).decode()}
