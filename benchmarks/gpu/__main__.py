"""AlexNet on one GPU, compared with the GPU's roof: alone, fed, learning, serving and resumed. Needs only torch."""

import argparse
import importlib
import sys
from pathlib import Path
from time import monotonic

import torch

from benchmarks.gpu.record import SIZES, OutOfTimeError, Record
from core.errors import UserError

ITEMS = {"ceilings": 0.03, "synthetic": 0.45, "fed": 0.14, "cifar": 0.2, "serving": 0.08, "resume": 0.1}
"""Modules in order, and the share of the time for each."""


def main() -> int:
    """Measure the figures that are missing in the file. Returns 2 for bad input, and 1 if an item failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here, and go on from those there")
    parser.add_argument("--minutes", type=float, default=8, help="time for all items together")
    parser.add_argument("--size", choices=SIZES, default="full", help="smoke: all of it, tiny, on any CPU")
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="sheets of CIFAR-10")
    arguments = parser.parse_args()
    try:
        record = Record(device_for(arguments.size), SIZES[arguments.size], arguments.json, sheets(arguments.cifar10))
        record.resume()
    except UserError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    failed = measure(record, arguments.minutes)
    print(f"{record.as_json()['machine']}\n\n{record.as_markdown()}")
    return int(failed)


def device_for(size: str) -> torch.device:
    """Return the GPU. The smoke size always runs on the CPU.

    Raises:
        UserError: there is no GPU.

    """
    if size == "smoke":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "torch finds no CUDA device here: run it on a machine with one; --size smoke runs every item on the CPU, "
            "tiny, to see that it works, and its figures mean nothing"
        )
    return torch.device("cuda", 0)


def sheets(given: Path | None) -> Path | None:
    """Return the folder of CIFAR-10: `given`, or the folder beside the repository, or None.

    Raises:
        UserError: `given` is no folder.

    """
    if given is not None and not given.is_dir():
        raise UserError(f"--cifar10 is {given}, which is no folder: give one with labels.csv and the sheets")
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
    return given or (beside if beside.is_dir() else None)


def measure(record: Record, minutes: float) -> bool:
    """Run the items, each within its share of the remaining time. Returns whether an item failed."""
    end, failed, names = monotonic() + 60 * minutes, False, list(ITEMS)
    for position, name in enumerate(names):
        left, shares = end - monotonic(), sum(ITEMS[other] for other in names[position:])
        record.deadline = monotonic() + left * ITEMS[name] / shares
        print(f"{name}: up to {max(0, record.deadline - monotonic()):.0f} s", file=sys.stderr)
        record.notes.pop(name, None)
        try:
            importlib.import_module(f"benchmarks.gpu.{name}").measure(record)
        except OutOfTimeError:
            record.note(name, "its time is spent: the same command goes on with what is missing")
        except UserError as error:
            record.note(name, str(error))
            failed = True
        except Exception as error:  # the figures of the other items must not be lost
            record.note(name, f"failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
