"""Thumbnails of the uncropped images in the quality report, for its page."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from core.machine import num_cores
from data.config import DataConfig
from data.images.decode import Pixels, opened, upright
from data.ingest.raw_shards import open_shard
from data.quality.findings import Evidence, QualityReport

THUMBNAILS_FILE = "quality-thumbnails.npy"
SIDE = 64
NUM_GROUPS, NUM_IN_GROUP = 24, 6
"""Number of groups with pictures in each finding, and number of pictures in each group."""
NUM_SUSPECTS = 96
"""Number of pictures of images whose label is probably wrong."""


def make_thumbnails(report: QualityReport, raw: Path, config: DataConfig) -> tuple[QualityReport, Pixels]:
    """Draw the page's images, uint8 [N, SIDE, SIDE, 3]. The returned report lists their origins."""
    wanted: dict[str, set[str]] = {}
    for image in shown(report):
        if image.shard and image.label is not None:
            wanted.setdefault(image.shard, set()).add(image.origin)
    with ThreadPoolExecutor(num_cores()) as threads:
        drawings = threads.map(lambda shard: _draw_all(raw / f"{shard}.parquet", wanted[shard], config), wanted)
        drawn = {origin: picture for some in drawings for origin, picture in some}
    pictures = np.array([drawn[origin] for origin in sorted(drawn)], dtype=np.uint8).reshape(-1, SIDE, SIDE, 3)
    return report.model_copy(update={"thumbnails": tuple(sorted(drawn))}), pictures


def num_shown(kind: str) -> int:
    """Number of groups with pictures, for a kind of finding."""
    return NUM_SUSPECTS if kind == "wrong_labels" else NUM_GROUPS


def shown(report: QualityReport) -> Iterator[Evidence]:
    """Yield the images that have pictures on the page."""
    for finding in report.findings:
        for group in finding.groups[: num_shown(finding.kind)]:
            yield from group[:NUM_IN_GROUP]


def _draw_all(shard: Path, origins: set[str], config: DataConfig) -> list[tuple[str, Pixels]]:
    return [(origin, _draw(content, config)) for origin, content in _read(shard, origins)]


def _read(shard: Path, origins: set[str]) -> Iterator[tuple[str, bytes]]:
    """Read single images. Row groups without wanted images are not read."""
    with open_shard(shard) as file:
        names = file.read(["origin"], use_threads=False)["origin"].to_pylist()
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            rows = [row for row, name in enumerate(names[start:end]) if name in origins]
            if rows:
                images = file.read_row_group(group, columns=["image"], use_threads=False)["image"]
                yield from ((names[start + row], images[row].as_py()) for row in rows)
            start = end


def _draw(content: bytes, config: DataConfig) -> Pixels:
    """Fit the whole image into a white square. A smaller image is enlarged without smoothing."""
    with opened(content, config.max_pixels, config.max_decoding_seconds) as picture:
        image, across, down = upright(picture, _fitted(*picture.size))
    width, height = _fitted(across[1] - across[0], down[1] - down[0])
    resample = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.BILINEAR
    box = (across[0], down[0], across[1], down[1])
    small = image.resize((width, height), resample, box=box)
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(small, ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.array(square)


def _fitted(width: float, height: float) -> tuple[int, int]:
    scale = SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
