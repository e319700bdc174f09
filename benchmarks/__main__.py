"""`make bench`: every benchmark that a CPU can run, one after another, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("prepare", "feed")
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run all of them; returns 1 where one of them failed."""
    failed = False
    for name in BENCHMARKS:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        failed |= subprocess.run(command, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
