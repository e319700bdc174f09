"""A bounded sample of what an endpoint was asked: measures of images, never the images themselves.

Each image of a day has the same chance to be kept: reservoir sampling, Vitter's algorithm R (1985).
N images, C classes.
"""

import fcntl
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from core.files import whole_file
from data.images.decode import Pixels
from models.exported.manifest import ModelManifest
from models.judging.drift import NUM_TRAITS, Values, Window, measure_traits
from serving.config import SAMPLES_DIR

FLUSH_SECONDS = 30.0
DAY = 86_400
DATE = "????-??-??"

_log = logging.getLogger("convoy")


class Sampler:
    """Keeps `num_samples` images of each day, for `days` days, in a folder. Safe to call from several threads.

    Whatever goes wrong with the folder, requests are answered: sampling stops, and the log says why.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        num_samples: int,
        days: float,
        *,
        now: Callable[[], float] = time.time,
        seed: int | None = None,
    ) -> None:
        """Go on with the sample of today, if there is one of this model in `folder`.

        Raises:
            OSError: the folder cannot be used, or another process keeps samples there.

        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = (folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise
        self._folder, self._model, self._size, self._days, self._now = folder, model, num_samples, days, now
        self._random = random.Random(seed)  # noqa: S311 - a sample, no secret
        self._lock = threading.Lock()
        self._saved = now()
        self._is_stopped = False
        self._open_day()

    def offer(self, pixels: Pixels, probabilities: Values) -> None:
        """Look at images [N, crop, crop, 3] and their probabilities [N, C], and keep some of them."""
        with self._lock:
            if self._is_stopped:
                return
            if _day(self._now()) != self._today:
                self._save()
                self._open_day()
            for image, row in zip(pixels, probabilities, strict=True):
                self._consider(image, row)
            if self._now() - self._saved >= FLUSH_SECONDS:
                self._save()

    def close(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            self._save()
            self._is_stopped = True
            self._lock_file.close()

    def _consider(self, image: Pixels, probabilities: Values) -> None:
        self._num_seen += 1
        place = len(self._rows)
        if place == self._size:
            place = self._random.randrange(self._num_seen)
            if place >= self._size:
                return
        row = np.concatenate([probabilities, measure_traits(image[None])[0]]).astype(np.float32)
        self._rows[place : place + 1] = [row]

    def _open_day(self) -> None:
        self._today = _day(self._now())
        self._rows: list[Values] = []
        self._num_seen = 0
        path = self._path()
        if path.is_file():
            with np.load(path) as kept:
                self._rows, self._num_seen = list(kept["rows"])[: self._size], int(kept["num_seen"])

    def _path(self) -> Path:
        return self._folder / f"{self._today}-{self._model}.npz"

    def _save(self) -> None:
        self._saved = self._now()
        if self._is_stopped or not self._rows:
            return
        try:
            with whole_file(self._path()) as temporary, temporary.open("wb") as file:
                np.savez(file, rows=np.stack(self._rows), num_seen=self._num_seen)
            remove_old(self._folder, self._days, self._now())
        except OSError as error:
            self._is_stopped = True
            _log.error("samples: stopped, %s: %s; requests are answered as before", self._folder, error.strerror)


def open_sampler(
    environment: Mapping[str, str], manifest: ModelManifest, num_samples: int, days: float
) -> Callable[[Pixels, Values], None] | None:
    """Give what keeps samples in the folder that the environment names; None where there is none, or it is unusable."""
    folder = environment.get(SAMPLES_DIR)
    if not folder:
        _log.warning("samples: %s names no folder: none are kept", SAMPLES_DIR)
        return None
    try:
        return Sampler(Path(folder), model_key(manifest.name, manifest.version or ""), num_samples, days).offer
    except BlockingIOError:
        _log.warning("samples: another endpoint keeps them in %s: this one keeps none", folder)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        _log.error("samples: none are kept in %s: %s; requests are answered as before", folder, error)
    return None


def model_key(name: str, version: str) -> str:
    """Name a model in the names of files."""
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', name)}-v{version}"


def read_samples(folder: Path, model: str) -> Window | None:
    """Read all samples of one model; None where there are none."""
    rows = []
    for path in sorted(folder.glob(f"{DATE}-{model}.npz")):
        with np.load(path) as kept:
            rows.append(kept["rows"])
    if not rows:
        return None
    together = np.concatenate(rows)
    return Window(together[:, :-NUM_TRAITS], together[:, -NUM_TRAITS:])


def remove_old(folder: Path, days: float, now: float) -> list[Path]:
    """Remove the samples of days that are longer ago."""
    first = _day(now - days * DAY)
    old = [path for path in folder.glob(f"{DATE}-*.npz") if path.name[:10] < first]
    for path in old:
        path.unlink(missing_ok=True)
    return old


def _day(when: float) -> str:
    return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d}"
