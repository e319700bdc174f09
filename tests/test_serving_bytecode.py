"""The bytecode that an image starts from."""

import os
import subprocess
import sys

from serving.packaging.bytecode import _freeze


def test_bytecode_counts_until_its_source_is_altered(tmp_path):
    source, bytecode = tmp_path / "code/module.py", tmp_path / "bytecode"
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(**more):
        command = [sys.executable, "-c", "import module; print(module.__spec__.loader.get_code('module').co_consts[0])"]
        return subprocess.check_output(command, cwd=source.parent, env=environment | more, text=True).strip()

    def write(text):
        source.write_text(f"said = '{text}'\n")
        os.utime(source, (1, 1))

    source.parent.mkdir()
    write("packed")
    assert run() == "packed"
    assert _freeze(bytecode) >= 1
    frozen = next(bytecode.rglob("module.*.pyc"))
    content = frozen.read_bytes()
    # The image's root is read-only, and copying it has changed the times.
    os.utime(source, (2, 2))
    assert run(PYTHONDONTWRITEBYTECODE="1") == "packed"
    assert frozen.read_bytes() == content
    # As long, and as old.
    write("forged")
    assert run(PYTHONDONTWRITEBYTECODE="1") == "forged"
