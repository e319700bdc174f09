"""`make bench`: runs every CPU benchmark in its own process, and renews the tables of README.md."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import markdown_table

BENCHMARKS = ("prepare", "feed", "train", "predict", "serve", "containers", "attack")
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "README.md"


def main() -> int:
    """Run all benchmarks. Returns 1 if a benchmark failed."""
    failed = False
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        failed |= subprocess.run(command, check=False).returncode != 0
    page = with_gpu_missing(PAGE.read_text(encoding="utf-8"))
    for path in sorted(RESULTS.glob("*.json")):
        page = with_table(page, json.loads(path.read_text(encoding="utf-8")))
    PAGE.write_text(page, encoding="utf-8")
    return int(failed)


def with_table(page: str, result: dict[str, Any]) -> str:
    """Put the table of a result between the benchmark's marks in the page.

    Raises:
        ValueError: the page has no such marks.

    """
    versions = result["versions"]
    conditions = f"{result['machine']}; {result['date']}; Python {versions['python']}, torch {versions['torch']}"
    return _between_marks(page, result["benchmark"], f"{conditions}\n\n{markdown_table(result['rows'])}")


def with_gpu_missing(page: str) -> str:
    """Mark every figure of the GPU's table as not measured.

    Raises:
        ValueError: the page has no marks for it.

    """
    from benchmarks.gpu.record import EXPECTED

    rows = [row.as_dict() for row in EXPECTED]
    return _between_marks(page, "gpu", f"No GPU was to be had.\n\n{markdown_table(rows)}")


def _between_marks(page: str, benchmark: str, text: str) -> str:
    begin, end = (f"<!-- {mark} {benchmark} -->" for mark in ("begin", "end"))
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{PAGE.name} has no place for {benchmark}: add {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
