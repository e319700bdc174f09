"""What the image of the worker takes of a checkout: tracked files and the commit, and no secret."""

import shutil
import subprocess
from pathlib import Path

import pytest
from images import write

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "serving/stack/tracked.sh"
TOKEN = "token-of-a-remote"
CONTEXT = ("HEAD", "index", "objects", "packed-refs", "refs", "shallow")
"""What .dockerignore leaves of .git."""


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A clone as somebody works in it: its address holds a token, files are changed, new, ignored and deleted."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "serving/stack", folder / "serving/stack")
    shutil.copy(ROOT / ".dockerignore", folder)
    write(folder, {"kept.py": b"1", "gone.py": b"1", ".gitignore": b"/ignored/\n"})
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    write(folder, {"kept.py": TOKEN.encode()})
    git(folder, "stash", "--quiet")
    write(folder, {"kept.py": b"2", "added file.py": b"1", "untracked": b"1", "ignored/secret": b"1"})
    git(folder, "add", "added file.py")
    (folder / "gone.py").unlink()
    git(folder, "remote", "add", "origin", f"https://user:{TOKEN}@localhost/convoy.git")
    return folder


def check(copied, commit):
    files = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    mine = {name for name in files if not name.startswith((".git/", "serving/"))}
    assert mine == {"kept.py", "added file.py", ".gitignore", ".dockerignore"}
    assert (copied / "kept.py").read_bytes() == b"2"
    assert git(copied, "-c", "safe.directory=*", "rev-parse", "HEAD") == commit
    names = git(copied, "-c", "safe.directory=*", "ls-files").splitlines()
    assert {"kept.py", "gone.py", "serving/stack/tracked.sh"} <= set(names)
    assert [name for name in files if name.endswith(("FETCH_HEAD", ".sample")) or name.startswith(".git/logs")] == []
    objects = git(copied, "-c", "safe.directory=*", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    contents = [git(copied, "-c", "safe.directory=*", "cat-file", "-p", one) for one in objects.splitlines()]
    assert not any(TOKEN in content for content in contents)
    assert not any(TOKEN.encode() in (copied / name).read_bytes() for name in files)


def test_only_what_is_tracked_is_copied_and_no_token(checkout, tmp_path):
    subprocess.run(["sh", SCRIPT, checkout, tmp_path / "copy"], check=True)
    check(tmp_path / "copy", git(checkout, "rev-parse", "HEAD"))


def test_what_a_build_is_given_of_git_is_enough(checkout, tmp_path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in ignored if ".git/" in line] == [".git/*", *(f"!.git/{name}" for name in CONTEXT)]
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "pack-refs", "--all")
    for path in (checkout / ".git").iterdir():
        if path.name not in CONTEXT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(["sh", SCRIPT, checkout, tmp_path / "copy"], check=True)
    check(tmp_path / "copy", commit)


def test_an_archive_has_files_and_no_commit(checkout, tmp_path):
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").write_text("gitdir: nowhere\n")
    subprocess.run(["sh", SCRIPT, checkout, tmp_path / "copy"], check=True)
    copied = tmp_path / "copy"
    assert {path.name for path in copied.iterdir()} == {
        *(".git", ".gitignore", ".dockerignore", "serving", "kept.py", "added file.py", "untracked")
    }
    with pytest.raises(subprocess.CalledProcessError):
        git(copied, "rev-parse", "--verify", "HEAD")


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_the_image_has_only_what_is_tracked(checkout, tmp_path):
    arguments = ["--file", "serving/stack/worker.Dockerfile", "--target", "exported", "--output", tmp_path / "out"]
    shutil.copytree(checkout, tmp_path / "context")
    with (tmp_path / "context/serving/stack/worker.Dockerfile").open("a") as file:
        file.write("\nFROM scratch AS exported\nCOPY --from=code /convoy /\n")
    git(tmp_path / "context", "add", "serving/stack/worker.Dockerfile")
    subprocess.run(["docker", "build", "--quiet", *arguments, "."], cwd=tmp_path / "context", check=True)
    check(tmp_path / "out", git(checkout, "rev-parse", "HEAD"))
