"""The ledger: one line of JSON for each change of the champion and of what is live, only ever added to."""

import getpass
import logging
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from serving.rollout import chain

What = Literal["deploy", "canary", "promote", "withdraw", "rollback", "failed", "wait", "refuse"]
"""A model that passes the gate, or a canary that proves itself, is promoted. A model that the gate cannot decide on
waits for a person, one that fails is refused."""

MOVES: tuple[What, ...] = ("deploy", "promote", "rollback")
"""What changes which release of a target gets all requests."""

_log = logging.getLogger("convoy")


class Release(BaseModel):
    """An image of a packed model, and where it comes from; a registered model that is not packed has no image."""

    model_config = ConfigDict(frozen=True)

    image: str = ""
    """its tag"""
    image_id: str = ""
    model_name: str = ""
    model_version: str = ""
    run_id: str = ""
    data_version: str = ""

    @classmethod
    def from_labels(cls, image: str, image_id: str, labels: Mapping[str, str]) -> Self:
        """Read the labels of an image, or of a container of it."""
        lineage = {name: labels.get(f"convoy.{name}", "") for name in list(cls.model_fields)[2:]}
        return cls(image=image, image_id=image_id, **lineage)

    def __str__(self) -> str:
        model = f"{self.model_name} v{self.model_version}"
        if not self.image:
            return model
        return f"{model} ({self.image})" if self.model_name else self.image


class Entry(BaseModel):
    """One change: when, what, from, to, why, by whom, and the figures that spoke for it."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    when: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    what: What
    target: str | None = None
    """cpu, gpu or edge; None: the registry, where a model became champion or did not"""
    before: Release | None = Field(None, alias="from")
    to: Release | None = None
    why: str
    by: str = Field(default_factory=lambda: f"{getpass.getuser()}@{socket.gethostname()}")
    figures: Mapping[str, float] = Field(default_factory=dict)
    previous: str = ""
    """SHA-256 of the line before; empty: the first line, or one from before lines were chained"""

    def __str__(self) -> str:
        place = f"{self.what:8}  {self.target or '-':4}"
        change = f"{self.before or 'nothing'} -> {self.to or 'nothing'}"
        return f"{self.when:%Y-%m-%d %H:%M:%SZ}  {place}  {change}: {self.why}  ({self.by})"


def append(path: Path, entry: Entry) -> Entry:
    """Add an entry, chained to the line before; when this returns, it is on the disk."""

    def line_after(previous: str) -> str:
        nonlocal entry
        entry = entry.model_copy(update={chain.PREVIOUS: previous})
        return entry.model_dump_json()

    chain.append(path, line_after)
    return entry


def read(path: Path, target: str | None = None) -> list[Entry]:
    """Read the entries, of one target or of all, the oldest first; a line that is none is told of and left out."""
    entries = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                entries.append(Entry.model_validate_json(line))
        except ValidationError:
            _log.warning("%s:%d is no entry: left out", path, number)
    return [entry for entry in entries if target in (None, entry.target)]


def history(entries: Iterable[Entry]) -> list[Release]:
    """Give what one target's entries say has been live, the last one being so now.

    A rollback takes the last one away: rolling back twice leads two releases back, and not to where one came from.
    """
    live: list[Release] = []
    for entry in entries:
        if entry.what not in MOVES or entry.to is None:
            continue
        if entry.what == "rollback" and len(live) > 1:
            live.pop()
        if not live or live[-1].image_id != entry.to.image_id:
            live.append(entry.to)
    return live
