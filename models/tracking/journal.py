"""Journal of metrics on disk. The training appends lines, and a sender reads the lines at its own pace."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import truncate
from pathlib import Path
from threading import Lock
from time import time


@dataclass(frozen=True)
class Point:
    """Value of a metric at a step."""

    name: str
    step: int
    value: float
    time: int
    """milliseconds since 1970"""


@dataclass(frozen=True)
class Line:
    """Metrics of one step, and the offset in the file after their line."""

    points: tuple[Point, ...]
    end: int


class Journal:
    """File with one line for each step that has metrics. The steps of each metric only increase.

    A step that is replayed after an interruption changes nothing. `append` returns after the whole line has been handed
    to the operating system, so a killed process loses at most the line that it was writing. The next opening of the
    journal cuts off an incomplete line.
    """

    def __init__(self, path: Path, arrived: Mapping[str, int] | None = None) -> None:
        """Open or create the file. `arrived` holds the last step of each metric that was written elsewhere."""
        self.path = path
        self._last = dict(arrived or {})
        self._lock = Lock()
        self._end = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for line in self.read(0):
            self._end = line.end
            for point in line.points:
                self._last[point.name] = max(point.step, self._last.get(point.name, -1))
        truncate(path, self._end)

    def append(self, metrics: Mapping[str, float], step: int) -> None:
        """Append a line, without metrics that already have a value at `step` or later.

        Raises:
            OSError: the disk is full.

        """
        with self._lock:
            new = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
            if not new:
                return
            content = {"step": step, "time": int(time() * 1000), "metrics": new}
            self._write(json.dumps(content).encode() + b"\n")
            self._last |= dict.fromkeys(new, step)

    def _write(self, line: bytes) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError:
            truncate(self.path, self._end)
            raise
        self._end += len(line)

    def append_next(self, metrics: Mapping[str, float]) -> None:
        """Append a line at the step after the last step of these metrics."""
        self.append(metrics, 1 + max((self._last.get(name, -1) for name in metrics), default=-1))

    def read(self, start: int) -> Iterator[Line]:
        """Yield the lines from byte `start`, up to the first incomplete or damaged line."""
        with self.path.open("rb") as file:
            file.seek(start)
            for content in file:
                points = _points(content)
                if points is None:
                    return
                start += len(content)
                yield Line(points, start)


def _points(line: bytes) -> tuple[Point, ...] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
        step, time_ms = int(content["step"]), int(content["time"])
        return tuple(Point(name, step, float(value), time_ms) for name, value in content["metrics"].items())
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
