"""While an image is built: take out of its packages what no endpoint uses. Runs inside, with the standard library only.

What a package's own code may ask for stays, and so does everything in `numpy.libs` and `pillow.libs`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = (
    # Tests, and what other packages are compiled with.
    "**/tests",
    "**/*.a",
    "**/*.c",
    "**/*.h",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    "numpy/distutils",
    "numpy/f2py",
    "numpy/typing/tests",
    # The library for programs in C; Python's module holds it a second time.
    "onnxruntime/capi/libonnxruntime.so*",
    # What makes models.
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    # What uv leaves.
    "../../../.lock",
)
"""Patterns in site-packages."""

UNSTRIPPED = ("httptools", "uvloop")
"""Packages whose compiled modules hold what debuggers want, up to nine tenths of them. A module that leans on a
`*.libs` folder must stay as it is: its loading depends on where things are in the file."""


def main() -> None:
    """Slim the environment in the folder that is named."""
    (packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    saved = 0
    for pattern in UNUSED:
        for path in sorted(packages.glob(pattern)):
            if not path.exists():
                continue  # it was in a folder that is gone
            saved += _size(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for package in UNSTRIPPED:
        for module in sorted((packages / package).rglob("*.so")):
            saved += module.stat().st_size
            subprocess.run(["strip", "--strip-unneeded", module], check=True)
            saved -= module.stat().st_size
    print(f"slimmed by {saved / 1e6:.1f} MB")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


if __name__ == "__main__":
    main()
