"""What single uploads cost an endpoint of `edge`: processor time, and the status that they get."""

import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from benchmarks.attack.clients import BOMBS, CORPUS
from benchmarks.attack.corpus import bombs, hostile_files
from benchmarks.report import Report
from benchmarks.serve_servers import RAW, Running, convoy, running

PATIENCE_SECONDS = 60.0
"""That an upload may take; the endpoint answers sooner, and its decoder may go on."""
SOON_SECONDS = 0.5
"""Who is answered sooner has been told what came of the upload, and nothing goes on after that."""
SETTLED_SECONDS = 0.05
"""Of processor time: a server that has used less over a tenth of a second is done with what it was sent."""


def measure_uploads(report: Report, model: Path, scratch: Path) -> None:
    """Post all bombs and all broken images, one after another; add the dearest, and how many the endpoint failed at."""
    server = convoy(model, scratch, "edge")[0]
    with running(server, scratch / "edge.log") as started:
        for name, uploads in ((BOMBS, bombs()), (CORPUS, _corpus())):
            if uploads:
                add_figures(report, name, started, uploads)


def _corpus() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in hostile_files()}


def add_figures(report: Report, name: str, started: Running, uploads: Mapping[str, bytes]) -> None:
    """Post uploads, by name, to a server; add the figures of these, which are called `name`."""
    cost, failed = {}, []
    url = f"http://127.0.0.1:{started.port}/classify"
    with httpx.Client(timeout=PATIENCE_SECONDS) as client:
        for upload, image in uploads.items():
            before, start = started.cpu_seconds(), time.monotonic()
            status = client.post(url, content=image, headers=RAW).status_code
            if time.monotonic() - start > SOON_SECONDS:
                _settle(started)
            cost[upload] = started.cpu_seconds() - before
            failed += [upload] * (status >= 500)
    dearest = max(cost, key=lambda upload: cost[upload])
    report.add(
        f"Convoy on edge: processor time of an upload at most, {name}", cost[dearest], "s", at_most=1,
        reference=f"{dearest}; {len(uploads)} uploads, one after another",
    )  # fmt: skip
    report.add(
        f"Convoy on edge: uploads answered 5xx, {name}", len(failed), "uploads", at_most=0, reference=", ".join(failed)
    )


def _settle(started: Running) -> None:
    """Wait until the server is done with what it was sent, whether or not it has answered."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    used = started.cpu_seconds()
    while time.monotonic() < give_up:
        time.sleep(0.1)
        if (now := started.cpu_seconds()) - used < SETTLED_SECONDS:
            return
        used = now
