"""The tool without its clone: a wheel in an environment of its own, and a project that it makes and runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from imports import ROOT

pytestmark = pytest.mark.slow

UV = [sys.executable, "-m", "uv"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy: setuptools packs what an earlier build has left in build/ too."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).strip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "clone" / name, follow_symlinks=False)
    build = [*UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable, "--offline"]
    subprocess.run([*build, "--out-dir", folder, folder / "clone"], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def tool(wheel, tmp_path_factory):
    """Install the wheel, and lend it the packages of this environment, less the clone that is installed there."""
    folder = tmp_path_factory.mktemp("tool")
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    install = [*UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([*install, wheel], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([python, "-c", where], text=True).strip()
    Path(site, "lent.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def said(tool, *arguments, folder):
    """Type a command of the installed tool in `folder`, as a user whose shell says nothing of these tests' servers."""
    foreign = ("BENTOML_HOME", "MLFLOW_TRACKING_URI", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    command = [tool / "bin" / "convoy", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_is_no_code(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.check_output(["git", "ls-files", "serving", "pipelines/template"], cwd=ROOT, text=True)
    assert set(tracked.split()) - packed - {"serving/screenshot.png"} == set()
    assert [name for name in packed if "__pycache__" in name or name.startswith("tests")] == []


def test_a_project_runs_from_the_wheel(tool, tmp_path):
    where = "import pipelines.commands.main; print(pipelines.commands.main.__file__)"
    place = subprocess.check_output([tool / "bin" / "python", "-c", where], cwd=tmp_path, text=True)
    assert place.startswith(str(tool))
    said(tool, "init", "digits", "--set", "model.network=lenet5", "--set", "training.max_epochs=2", folder=tmp_path)
    project = tmp_path / "digits"
    # Names of our rooms, which a user may well choose.
    for name in ("data.py", "models.py"):
        (project / name).write_text("raise SystemExit('a file of the user was imported')\n")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and ".git" not in path.parts}
    assert "is the champion, packed as" in said(tool, "run", folder=project)
    assert {path: path.read_bytes() for path in before} == before
    assert (
        json.loads(said(tool, "--project", "digits", "status", "--json", folder=tmp_path))["champion"]["version"] == "1"
    )
