import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from houses import sources
from imports import ROOT, modules_in
from packaging.requirements import Requirement

from core import code

# A room imports only what stands to its right.
ROOMS = ["convoy", "pipelines", "serving", "models", "data", "core"]

# Where a heavy library may be imported: a whole room, or single files.
HOMES = {
    "prefect": ["pipelines/"],
    "prefect_dask": ["pipelines/"],
    "bentoml": ["serving/"],
    "torch": ["models/", "data/augmentation/", "data/batches/loader.py"],
    # networks; transforms that a user names; and the one source that leaves downloading and checking data sets to it
    "torchvision": ["models/", "data/augmentation/extra.py", "data/sources/torchvision_sets.py"],
    "torchmetrics": ["models/"],
    "pytorch_lightning": ["models/"],
    "onnx": ["models/"],
    "onnxscript": ["models/"],
    "mlflow": ["models/tracking/"],
    "dvc": ["data/versioning.py"],
    # the cluster that `prepare` may run on
    "dask": ["data/preparing/cluster.py"],
    "distributed": ["data/preparing/cluster.py"],
    # our parameters, and the description that BentoML writes of a Bento
    "yaml": ["pipelines/config.py", "serving/packaging/bento.py"],
}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50

# An index of somebody's, or a folder of somebody's machine.
INDEX = re.compile(r"https?://\S+/simple\b|--(extra-)?index[-]url|--find[-]links")
FOLDER = re.compile(r"(?<![\w.~)}])/(home|root|tmp|work|Users)/")

# The folders named in these are a container's.
CONTAINER_FILES = re.compile(r"Dockerfile|docker-compose|serving/stack/")


def tracked() -> list[Path]:
    """The files that git has or would take: what is ignored is nobody's business here."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """The top-level names that `path` imports anywhere, inside functions and for type checkers too."""
    return {module.partition(".")[0] for module in modules_in(path)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_stands_to_its_right(room):
    forbidden = {*ROOMS[: ROOMS.index(room)], "tests", "benchmarks"}
    assert {name(path): sorted(bad) for path in sources(room) if (bad := imported(path) & forbidden)} == {}


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_stays_at_home(library):
    users = [name(path) for path in sources(*ROOMS) if library in imported(path)]
    assert [user for user in users if not user.startswith(tuple(HOMES[library]))] == []


def test_a_module_that_keys_leave_out_computes_nothing():
    """What pixels and weights pass through is in the keys: a mark cannot take it out by mistake."""
    computing = {"numpy", "torch", "torchmetrics", "PIL", "simplejpeg", "pyarrow", "sklearn", "onnx"}
    marked = [path for path in sources(*ROOMS) if re.search(rf"^{code.MARK} = ", path.read_text(), re.MULTILINE)]
    assert {name(path): sorted(bad) for path in marked if (bad := imported(path) & computing)} == {}


def test_init_files_are_empty():
    """But for the door's, which holds nothing but what it shows."""
    filled = [path for path in sources(*ROOMS) if path.name == "__init__.py" and path.read_text()]
    assert [name(path) for path in filled] == ["convoy/__init__.py"]
    statements = ast.parse(filled[0].read_text()).body
    assert {type(one) for one in statements[1:]} == {ast.ImportFrom, ast.Assign}


def test_no_file_is_named_after_nothing():
    assert [name(path) for path in tracked() if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []


def test_files_and_functions_stay_short():
    long = []
    for path in sources(*ROOMS, "tests", "benchmarks"):
        text = path.read_text()
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            long.append(f"{name(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name(path)}:{node.lineno}: {node.name} has {lines} lines")
    assert long == []


def test_no_index_and_no_folder_of_a_machine_is_tracked():
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode().splitlines(), 1):
            if INDEX.search(line) or (FOLDER.search(line) and not CONTAINER_FILES.search(name(path))):
                found.append(f"{name(path)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_the_wheel_packs_all_folders_of_the_rooms():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(project["tool"]["setuptools"]["packages"]["find"]["include"]) == sorted(f"{room}*" for room in ROOMS)
    folders = {path.parent for path in sources(*ROOMS)}
    assert [name(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_lock_holds_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE))
    groups = project["dependency-groups"]
    asked = map(Requirement, [*project["project"]["dependencies"], *groups["dev"], *groups["docs"]])
    missing = [str(one) for one in asked if one.name not in locked or locked[one.name] not in one.specifier]
    assert missing == [], "say `make lock`"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lists_targets_that_exist():
    def make(*arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = re.findall(r"^make (\w+) +\S", make(), re.MULTILINE)
    tools = ["demo", "test", "slow", "lint", "bench", "docs"]
    assert listed == ["help", *tools, "up", "env", "pin", "audit", "clean", "lock"]
    # A file of a target's name would hide it if it were not declared phony.
    assert f".PHONY: {' '.join(listed)}\n" in (ROOT / "Makefile").read_text()
    assert make("--dry-run", *listed)
