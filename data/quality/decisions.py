"""Decisions by people about single images: `data/decisions.csv`, which is kept in git.

A line is `sha256,decision` or `sha256,decision,image`. The decision is `drop`, `keep` or the right label. A line with
an image (its path in reports) applies only to this file among files with equal bytes.
"""

import csv
import difflib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from core.errors import UserError, one_line
from data.ingest.raw_shards import read_columns
from data.preparing.shard import Dropped, Part
from data.splits import Split

DECISIONS_FILE = Path("data/decisions.csv")
COLUMNS = ("sha256", "decision", "image")
DROP, KEEP = "drop", "keep"

NUM_NAMED = 10
"""Maximum number of classes in a message. If there are more, it lists classes with a similar name."""

Labels = dict[str, dict[str, str]]
"""New labels by origin, for the stem of each raw shard."""


class Decision(NamedTuple):
    """One line of the file."""

    line: int
    sha256: str
    what: str
    """drop, keep or a label"""
    image: str
    """origin of one copy; empty: all copies"""


class Copy(NamedTuple):
    """File to which a decision applies."""

    shard: str
    origin: str
    label: str
    split: Split | None
    """split chosen by the user"""


@dataclass
class Decided:
    """Effect of the decisions on the images in `data/raw`."""

    dropped: Dropped = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    """checksums (sha256) of images that a person found right"""
    num_applied: int = 0
    unmatched: list[Decision] = field(default_factory=list)

    def label_of(self, shard: str, origin: str, label: str) -> str | None:
        """Return the new label of an image with label `label` in the source, or None if the image is dropped."""
        if origin in self.dropped.get(shard, ()):
            return None
        return self.labels.get(shard, {}).get(origin, label)

    def relabel(self, part: Part) -> Part:
        """Return a copy of a part with the new labels."""
        labels = self.labels.get(part.name)
        if not labels:
            return part
        rows, dropped = (
            {split: tuple(row._replace(label=labels.get(row.origin, row.label)) for row in some)
             for split, some in splits.items()}
            for splits in (part.rows, part.dropped)
        )  # fmt: skip
        return part.model_copy(update={"rows": rows, "dropped": dropped})


def read_decisions(path: Path) -> list[Decision]:
    """Read the decisions; none if the file does not exist.

    Raises:
        UserError: a line is malformed, names no image, or contradicts another line. The message gives file and line.

    """
    if not path.is_file():
        return []
    decisions = list(_lines(path))
    by_image: dict[str, list[Decision]] = {}
    for decision in decisions:
        by_image.setdefault(decision.sha256, []).append(decision)
    for some in by_image.values():
        for one, other in combinations(some, 2):
            if _contradict(one, other):
                raise UserError(
                    f"{path}:{other.line}: {_words(other)} contradicts line {one.line}, {_words(one)}, about the same "
                    f"image {other.sha256[:12]}: remove one of the two lines"
                )
    return decisions


def digest_of_decisions(path: Path) -> str:
    """Hash the file for DVC, which cannot track a file that may be absent.

    Raises:
        UserError: a line is malformed.

    """
    read_decisions(path)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _lines(path: Path) -> Iterator[Decision]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # keeps line ends, because names may contain them
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): expected UTF-8 text") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{start}: is no line of a CSV file ({error}): quotes come in pairs") from None
        if any(cells) and not cells[0].startswith("#") and cells[0].casefold() != COLUMNS[0]:
            yield _decision(cells, f"{path}:{start}", start)


def _decision(cells: Sequence[str], where: str, line: int) -> Decision:
    if len(cells) not in (2, 3):
        raise UserError(f"{where}: has {len(cells)} columns: expected sha256,decision or sha256,decision,image")
    sha256, what, image = (*cells, "")[:3]
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(
            f"{where}: {sha256!r} names no image: expected the SHA-256 of its file, 64 hexadecimal digits, as the "
            "quality page gives it"
        )
    if not what:
        raise UserError(f"{where}: decides nothing: expected a label, drop or keep in the second column")
    return Decision(line, sha256.lower(), what, image)


def _words(decision: Decision) -> str:
    return f"{decision.what!r}" + (f" for {decision.image!r}" if decision.image else "")


def _contradict(one: Decision, other: Decision) -> bool:
    """Whether two decisions about images with equal bytes contradict each other."""
    same_file = not one.image or not other.image or one.image == other.image
    if one.what == other.what:
        return one.what == KEEP and not same_file
    return same_file or DROP not in (one.what, other.what)


def decide(decisions: Sequence[Decision], shards: Sequence[Path], path: Path) -> Decided:
    """Apply the decisions in `path` to the images of the raw shards.

    Raises:
        UserError: a label is unknown, or an image with several labels or splits is kept without naming a copy. The
            message gives file and line.

    """
    decided = Decided()
    if not decisions:
        return decided
    _check_labels(decisions, shards, path)
    copies = _copies(decisions, shards)
    for decision in decisions:
        all_of_it = copies.get(decision.sha256, [])
        meant = [copy for copy in all_of_it if decision.image in ("", copy.origin)]
        if not meant:
            decided.unmatched.append(decision)
            continue
        decided.num_applied += 1
        if decision.what == KEEP:
            _keep(decided, decision, all_of_it, path)
        for copy in meant if decision.what != KEEP else ():
            if decision.what == DROP:
                decided.dropped.setdefault(copy.shard, {})[copy.origin] = f"left out by {DECISIONS_FILE}"
            else:
                decided.labels.setdefault(copy.shard, {})[copy.origin] = decision.what
    return decided


def _keep(decided: Decided, decision: Decision, copies: Sequence[Copy], path: Path) -> None:
    decided.kept.add(decision.sha256)
    if decision.image:
        reason = f"another copy is kept by {DECISIONS_FILE}: {decision.image}"
        for copy in copies:
            if copy.origin != decision.image:
                decided.dropped.setdefault(copy.shard, {})[copy.origin] = reason
    elif len({(copy.label, copy.split) for copy in copies}) > 1:
        raise UserError(
            f"{path}:{decision.line}: leaves open which copy to keep: "
            f"{' or '.join(repr(copy.origin) for copy in copies[:3])}: name one in the third column"
        )


def _check_labels(decisions: Sequence[Decision], shards: Sequence[Path], path: Path) -> None:
    known: set[str] = set()
    for shard in shards:
        known.update(read_columns(shard, ["label"])["label"].unique().to_pylist())
    for decision in decisions:
        if decision.what not in (DROP, KEEP, *known):
            close = difflib.get_close_matches(decision.what, known, n=1)
            names = sorted(known) if len(known) <= NUM_NAMED else close
            hint = f", or one of the classes {', '.join(names)}" if names else ", or a class of the data"
            raise UserError(f"{path}:{decision.line}: no class is named {decision.what!r}: expected drop, keep{hint}")


def _copies(decisions: Sequence[Decision], shards: Sequence[Path]) -> dict[str, list[Copy]]:
    """Find the files of the images with decisions. Only these files become Python objects."""
    wanted = pa.array({decision.sha256 for decision in decisions}, pa.string())
    copies: dict[str, list[Copy]] = {}
    for shard in shards:
        table = read_columns(shard, ["origin", "label", "split", "sha256"])
        for row in table.filter(pc.is_in(table["sha256"], value_set=wanted)).to_pylist():
            copy = Copy(shard.stem, row["origin"], row["label"], row["split"])
            copies.setdefault(row["sha256"], []).append(copy)
    return copies
