"""The home page: what is live and why, the champion, the last runs, what waits for a person, and the ledger's end."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.errors import UserError
from core.pages import render
from pipelines.config import Config
from pipelines.lineage import Node, lineage
from pipelines.prefect_server import HOST
from pipelines.workspace import LEDGER, open_registry, open_tracking
from serving.rollout import chain
from serving.rollout.ledger import MOVES, Entry, read

if TYPE_CHECKING:
    from models.tracking.runs import TrainedRun

TEMPLATE = Path(__file__).with_suffix("") / "page.html.j2"
NUM_RUNS, NUM_ENTRIES = 8, 12
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FILES = {"card": "model-card.html", "comparison": "comparison.html"}
"""Pages of runs that are shown here, by the first part of their path; the second part is a version."""

MISSING = (404, "there is no such page")

_log = logging.getLogger("convoy")


def home_page(config: Config, links: Mapping[str, str]) -> str:
    """Write the page as things are now; a part that cannot be had says why. `links` are addresses by name."""
    entries = read(LEDGER)
    parts = {"runs": lambda: _runs(config), "champion": lambda: _champion(config), "paths": lambda: _paths(config)}
    found, faults = {}, []
    for name, part in parts.items():
        found[name], fault = _attempt(part)
        faults += [fault] if fault and fault not in faults else []
    return render(
        TEMPLATE,
        **found,
        faults=faults,
        live=list(_live(entries)),
        entries=entries[: -NUM_ENTRIES - 1 : -1],
        ledger=chain.verify(LEDGER),
        links=links,
    )


def _attempt(part: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return part(), ""
    except UserError as error:
        return None, str(error)


def _live(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Give, for each target, the entry that has brought what is live."""
    for target in dict.fromkeys(entry.target for entry in entries if entry.target):
        moves = [entry for entry in entries if entry.target == target and entry.what in MOVES]
        yield from moves[-1:]


def _champion(config: Config) -> dict[str, Any] | None:
    from models.tracking.registry import CHAMPION

    version = open_registry(config).by_alias(CHAMPION)
    if version is None:
        return None
    run = open_tracking(config).get(version.run_id)
    metrics = {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    return {"version": version, "metrics": metrics, "worse": run.tags.get("convoy.worse_slices", "not looked at")}


def _runs(config: Config) -> list[dict[str, Any]]:
    """List the last runs with what has changed since the one before, and what waits for a person."""
    from models.tracking.runs import VERDICT

    runs, versions = open_tracking(config).all_trained(), open_registry(config).versions()
    return [
        {
            "name": run.tags.get("mlflow.runName", run.run_id[:8]),
            "version": versions.get(run.run_id),
            "accuracy": run.metrics.get("test/accuracy"),
            "verdict": run.tags.get(VERDICT, "not judged"),
            "waits": run.tags.get(VERDICT, "").startswith("waits"),
            "changes": _changes(before, run) if before else ["the first run"],
        }
        for run, before in zip_longest(runs[:NUM_RUNS], runs[1 : NUM_RUNS + 1])
    ]


def _changes(before: "TrainedRun", run: "TrainedRun") -> list[str]:
    from models.tracking.runs import CODE

    sections = ("model.", "training.", "augmentation.", "data.")
    changes = [
        f"{name} {before.params.get(name, 'unset')} → {value}"
        for name, value in sorted(run.params.items())
        if name.startswith(sections) and before.params.get(name) != value
    ]
    if before.data_version != run.data_version:
        changes.insert(0, f"data {before.data_version[:8]} → {run.data_version[:8]}")
    return changes + (["code"] if before.tags.get(CODE) != run.tags.get(CODE) else [])


def _paths(config: Config) -> list[list[Node]]:
    """Give the ways from the champion's commit to where it is live."""
    return [path for node in lineage(config, "champion") for path in _walk(node)]


def _walk(node: Node) -> Iterator[list[Node]]:
    if not node.children:
        yield [node]
    for child in node.children:
        yield from ([node, *path] for path in _walk(child))


@contextmanager
def serve_home(config: Config, port: int, links: Mapping[str, str]) -> Iterator[str]:
    """Serve the page on this machine while the block lasts; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            # Another name for this machine may be a page elsewhere that wants to read this one.
            host = self.headers.get("Host", "").rpartition(":")[0]
            status, body = answer(config, self.path, links) if host in (HOST, "localhost") else MISSING
            self.send_response(status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, form: str, *values: Any) -> None:
            _log.debug(form, *values)

    server = ThreadingHTTPServer((HOST, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="home", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(config: Config, path: str, links: Mapping[str, str]) -> tuple[int, str]:
    """Give the status and the page at a path."""
    parts = [part for part in urlsplit(path).path.split("/") if part]
    if not parts:
        return 200, home_page(config, links)
    if len(parts) != 2 or parts[0] not in FILES or not parts[1].isdecimal():
        return MISSING
    try:
        version = open_registry(config).find(parts[1])
        kept = open_tracking(config).log(version.run_id).read(FILES[parts[0]]) if version else None
    except UserError as error:
        return 503, escape(str(error))
    return (200, kept) if kept else MISSING
