"""CPU time and status of single uploads to an endpoint for `edge`."""

import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from benchmarks.attack.clients import BOMBS, CORPUS
from benchmarks.attack.corpus import bombs, hostile_files
from benchmarks.report import Report
from benchmarks.serve_servers import RAW, Running, convoy, running

PATIENCE_SECONDS = 60.0
"""Time limit of an upload. The endpoint answers sooner, but its decoder may continue."""
SOON_SECONDS = 0.5
"""After a faster answer, the endpoint has finished all work on the upload."""
SETTLED_SECONDS = 0.05
"""CPU time. A server that uses less within a tenth of a second has finished its work."""


def measure_uploads(report: Report, model: Path, scratch: Path) -> None:
    """Post all bombs and all broken images, one after another. Report the maximum cost and the 5xx answers."""
    server = convoy(model, scratch, "edge")[0]
    with running(server, scratch / "edge.log") as started:
        for name, uploads in ((BOMBS, bombs()), (CORPUS, _corpus())):
            if uploads:
                add_figures(report, name, started, uploads)


def _corpus() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in hostile_files()}


def add_figures(report: Report, name: str, started: Running, uploads: Mapping[str, bytes]) -> None:
    """Post uploads, given by name, to a server, and add their figures to the report under `name`."""
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
    """Wait until the server has finished its work, whether or not it has answered."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    used = started.cpu_seconds()
    while time.monotonic() < give_up:
        time.sleep(0.1)
        if (now := started.cpu_seconds()) - used < SETTLED_SECONDS:
            return
        used = now
