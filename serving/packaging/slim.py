"""Build step of an image: delete files of packages that no endpoint uses. Uses the standard library only.

Files that a package's own code may load stay, and so does everything in `numpy.libs` and `pillow.libs`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

UNUSED = (
    # Tests, and files for compiling other packages.
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
    # The library for C programs. Python's module holds a second copy.
    "onnxruntime/capi/libonnxruntime.so*",
    # Tools that make models.
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    # Left by uv.
    "../../../.lock",
)
"""Patterns in site-packages."""

UNSTRIPPED = ("httptools", "uvloop")
"""Packages whose compiled modules contain debug symbols, up to nine tenths of their size. A module that needs a
`*.libs` folder cannot be stripped: loading depends on offsets in the file."""


def main() -> None:
    """Slim the virtual environment in the folder argv[1]."""
    (packages,) = Path(sys.argv[1]).glob("lib/python3*/site-packages")
    saved = 0
    for pattern in UNUSED:
        for path in sorted(packages.glob(pattern)):
            if not path.exists():
                continue  # its folder has been deleted
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
