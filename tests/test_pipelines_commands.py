import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import draw_classes
from PIL import Image
from typer.testing import CliRunner

from pipelines.commands.help import GROUPS
from pipelines.commands.main import app
from serving.endpoint.auth import read_tokens
from serving.rollout.ledger import Entry, Release, append


def convoy(*arguments):
    """Run a command in this process; gives exit status and output, and demands one line on stderr where it failed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    if result.exit_code:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def told(result, exit_code):
    """The one line of a failed command."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("convoy:")]
    assert result.exit_code == exit_code, result.output
    assert len(lines) == 1
    return lines[0]


def folder_options(folder, *more):
    return ["--set", "data.source=folder", "--set", f"data.path={folder}", *more]


def test_a_new_token_is_admitted_by_its_line():
    first, second = convoy("token", "ann").stdout.splitlines()
    token, line = (text.rpartition(": ")[2] for text in (first, second))
    assert line.endswith(" ann")
    assert read_tokens({"CONVOY_TOKENS": line}).find(f"Bearer {token}".encode()) == "ann"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["data"],
        ["data", "report"],
        ["train"],
        ["serve"],
        ["predict"],
        ["status"],
        ["deploy"],
        ["rollback"],
    ],
)
def test_help(command):
    result = convoy(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys, contextlib\nfrom pipelines.commands.main import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'bentoml', 'numpy', 'onnxruntime'} & sys.modules.keys()\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_params_prints_every_parameter_with_its_overrides(workspace):
    result = convoy("params", "--set", "training.max_epochs=3")
    assert result.exit_code == 0
    assert "  # passes over the training images; null: 12, with finetune 5\n  max_epochs: 3\n" in result.stdout


def test_not_a_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "or make one with `convoy init DIR`" in told(convoy("status"), 2)


def test_a_typo_in_params_yaml(workspace):
    (workspace / "params.yaml").write_text("training:\n  max_epoch: 3\n", encoding="utf-8")
    assert "params.yaml: unknown key training.max_epoch; did you mean max_epochs?" in told(convoy("run"), 2)


def test_a_typo_in_set(workspace):
    assert "--set: unknown key trainin" in told(convoy("run", "--set", "trainin.max_epochs=3"), 2)


def test_no_git_repository(workspace):
    (workspace / ".git").rename(workspace / "git")
    line = told(convoy("data", "ingest"), 2)
    assert "is no git repository" in line
    assert "git init" in line


def missing(folder):
    return folder / "nowhere"


def a_file(folder):
    path = folder / "photo.jpg"
    path.write_bytes(b"")
    return path


def empty(folder):
    path = folder / "empty"
    path.mkdir()
    return path


def one_class(folder):
    return draw_classes(folder / "one", ["cat"], 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "does not exist"),
        (a_file, "is not a folder"),
        (empty, "holds no images"),
        (one_class, "holds one class, 'cat'"),
    ],
)
def test_a_source_that_cannot_be_used(workspace, tmp_path, make, words):
    line = told(convoy("data", "ingest", *folder_options(make(tmp_path))), 2)
    assert words in line
    assert "<class>/*.jpg" in line
    assert not list((workspace / "data").glob("*/*.parquet"))


@pytest.mark.parametrize("command", [["run"], ["data", "prepare"]])
def test_the_source_is_looked_at_before_a_server_starts(workspace, tmp_path, monkeypatch, command):
    def start_server(*_, **__):
        raise AssertionError("a server was started")

    monkeypatch.setattr("pipelines.prefect_server.subprocess.Popen", start_server)
    assert "holds one class, 'cat'" in told(convoy(*command, *folder_options(one_class(tmp_path))), 2)


def test_the_first_line_comes_before_anything_heavy(workspace):
    code = (
        "import sys\nfrom pipelines.commands.main import app\n"
        "class Heavy:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in {'torch', 'mlflow', 'prefect', 'dvc', 'bentoml'}:\n"
        "            raise SystemExit\n"
        "sys.meta_path.insert(0, Heavy())\n"
        "app(['train'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr.splitlines()[0].endswith("train: looks for what is not up to date")


def test_no_folder_named(workspace):
    assert "--set data.path=FOLDER" in told(convoy("data", "ingest", "--set", "data.source=folder"), 2)


@pytest.mark.slow
def test_a_class_with_one_image(workspace, tmp_path):
    photos = draw_classes(tmp_path / "photos", ["cat", "dog"], 20)
    draw_classes(photos, ["emu"], 1)
    line = told(convoy("data", "prepare", *folder_options(photos)), 1)
    assert "class 'emu' has one usable image" in line
    assert list((workspace / "data" / "raw").glob("*.parquet")), "what was made before is kept"


@pytest.mark.slow
def test_files_of_all_kinds_and_names_stop_nothing_and_are_listed(workspace, tmp_path):
    photos = draw_classes(tmp_path / "photos", ["a cat", "собака"], 40)
    (photos / "a cat" / "two\nlines.png").write_bytes((photos / "a cat" / "0.png").read_bytes())
    (photos / "a cat" / "notes.txt").write_text("no image", encoding="utf-8")
    (photos / "a cat" / "cut.png").write_bytes((photos / "a cat" / "1.png").read_bytes()[:60])
    (photos / "собака" / "nothing.jpg").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(photos / "собака" / "enormous.png")
    result = convoy("data", "prepare", *folder_options(photos))
    assert result.exit_code == 0, result.output
    report = json.loads(convoy("data", "report", "--json").stdout)
    assert report["classes"] == {"a cat": 41, "собака": 40}
    reasons = {image["path"]: image["reason"] for image in report["rejected"]}
    assert reasons.keys() == {"a cat/notes.txt", "a cat/cut.png", "собака/nothing.jpg", "собака/enormous.png"}
    assert reasons["a cat/notes.txt"] == "not an image"
    assert reasons["собака/nothing.jpg"] == "empty file"
    assert "50,000,000 pixels" in reasons["собака/enormous.png"]
    assert report["num_rejected"] == 4
    assert sum(report["splits"].values()) == report["num_images"] == 81


@pytest.mark.parametrize(
    "command", [["serve"], ["evaluate"], ["predict", "x.png"], ["data", "report"], ["data", "preview"]]
)
def test_nothing_there_yet(workspace, command):
    line = told(convoy(*command), 2)
    assert "`convoy " in line, "the remedy is a command"


def test_status_before_the_first_run(workspace):
    found = json.loads(convoy("status", "--json").stdout)
    assert found == {"data": None, "champion": None, "bentos": [], "live": {}}


def test_two_commands_at_once(workspace):
    (workspace / "outputs").mkdir()
    code = (
        "import fcntl, sys\nfile = open('outputs/lock', 'a+')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('4711')\nfile.flush()\nprint('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        line = told(convoy("data", "ingest"), 1)
        assert "process 4711" in line
        assert "wait until it ends" in line
        holder.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.slow
def test_a_full_disk(workspace, tmp_path):
    photos = draw_classes(tmp_path / "photos", ["cat", "dog"], 150, size=64)
    disk = workspace / "data" / "raw"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        line = told(convoy("data", "ingest", *folder_options(photos)), 1)
        assert "is full" in line
        assert not [path for path in disk.iterdir() if path.suffix == ".tmp"], "no half-written file"
    finally:
        subprocess.run(["umount", disk], check=True)
    assert convoy("data", "ingest", *folder_options(photos)).exit_code == 0


def test_deploying_needs_a_stack(workspace):
    assert "there is no docker-compose.yml in" in told(convoy("deploy", "--target", "cpu"), 2)
    (workspace / "docker-compose.yml").touch()
    assert told(convoy("rollback"), 2).endswith("say `make env`")
    assert "serving.target = 'tpu'" in told(convoy("deploy", "--target", "tpu"), 2)


def test_the_ledger_is_printed(workspace):
    assert convoy("ledger").stdout == "the ledger is empty: nothing has been promoted or deployed yet\n"
    assert json.loads(convoy("ledger", "--json").stdout) == []
    release = Release(image="convoy/m:1", image_id="sha256:1", model_name="m", model_version="1")
    append(
        workspace / "outputs" / "ledger.jsonl", Entry(what="deploy", target="cpu", to=release, why="a test", by="me")
    )
    (line,) = convoy("ledger").stdout.splitlines()
    assert line.endswith("deploy    cpu   nothing -> m v1 (convoy/m:1): a test  (me)")
    (entry,) = json.loads(convoy("ledger", "--json", "--target", "cpu").stdout)
    assert (entry["from"], entry["to"]["image_id"]) == (None, "sha256:1")


def test_a_ledger_is_verified(workspace):
    assert convoy("ledger", "--verify").stdout == "the ledger is whole: 0 lines, the last one -\n"
    path = workspace / "outputs" / "ledger.jsonl"
    for why in ("first", "second"):
        append(path, Entry(what="deploy", target="cpu", why=why))
    assert convoy("ledger", "--verify").stdout.startswith("the ledger is whole: 2 lines, the last one ")
    assert json.loads(convoy("ledger", "--verify", "--json").stdout)["faults"] == []
    path.write_text(path.read_text().replace("first", "other"))
    assert "ledger.jsonl:2 does not follow line 1" in told(convoy("ledger", "--verify"), 1)
    assert "leave --target out" in told(convoy("ledger", "--verify", "--target", "cpu"), 2)


def test_a_platform_is_that_of_an_image():
    assert "say --containerize too" in told(convoy("package", "--platform", "linux/arm64"), 2)


def test_the_version():
    assert convoy("--version").stdout == f"convoy {version('convoy')}\n"


def test_every_command_is_in_a_group_of_the_help():
    lines = convoy("--help").stdout.splitlines()
    assert [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")] == ["Options", *GROUPS]


def test_a_shell_completes_commands():
    environment = {**os.environ, "_CONVOY_COMPLETE": "complete_bash", "COMP_WORDS": "convoy pre", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "from pipelines.commands.main import main; main()"]
    assert subprocess.check_output(command, env=environment, text=True).split() == ["predict"]
