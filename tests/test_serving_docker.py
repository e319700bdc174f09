from pathlib import Path

import pytest

from core.errors import UserError
from serving.rollout.docker import docker, explain

BUILD = """\
#20 [packages 2/8] RUN something else
#20 0.101 this went well
#20 DONE 0.2s

#21 [rehearsal 2/3] RUN python /build/rehearse.py
#21 9.252 the endpoint does not answer
#21 9.253 at all
#21 ERROR: process "/bin/sh -c python /build/rehearse.py" did not complete successfully: exit code: 1
------
 > [rehearsal 2/3] RUN python /build/rehearse.py:
------
image.Dockerfile:38
ERROR: failed to solve: process "/bin/sh -c python /build/rehearse.py" did not complete successfully: exit code: 1
"""


def test_without_a_client_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no `docker` command here: install Docker"):
        docker("version")


def client(folder: Path, script: str) -> str:
    """A client that does what `script` does."""
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Cannot connect to the Docker daemon at unix:///x. Is it running?' >&2; exit 1", "no Docker engine ans"),
        ("echo 'permission denied while trying to connect' >&2; exit 1", "no Docker engine answers: start it, and see"),
        ("echo 'Error: No such image: a' >&2; exit 1", "^docker image failed: Error: No such image: a$"),
        ("exec /bin/sleep 5", r"^docker image did not end in 0\.2 seconds$"),
    ],
)
def test_what_went_wrong_is_one_line(tmp_path, monkeypatch, script, message):
    monkeypatch.setenv("PATH", client(tmp_path, script))
    with pytest.raises(UserError, match=message) as error:
        docker("image", "ls", timeout=0.2 if "sleep" in script else None)
    assert "\n" not in str(error.value)


def test_it_gives_what_was_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", client(tmp_path, 'echo "$2"; echo error >&2; echo'))
    assert docker("image", "two words") == "two words"
    assert docker("image", "two words", with_errors=True).split() == ["two", "words", "error"]


def test_of_a_build_the_step_that_failed_speaks():
    error = str(explain("build", BUILD))
    assert error == "docker build failed: the endpoint does not answer at all"


@pytest.mark.docker
def test_a_real_client_says_that_nobody_answers(engine, monkeypatch):
    with pytest.raises(UserError, match=r"docker image failed: .*[Nn]o such image"):
        docker("image", "inspect", "convoy/nothing-of-this-name")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(UserError, match="no Docker engine answers"):
        docker("version", "--format", "{{.Server.Version}}")


def test_a_client_gets_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", client(tmp_path, "read line && echo asked || echo silent"))
    assert docker("login") == "silent"
