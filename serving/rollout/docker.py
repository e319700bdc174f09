"""The one way to Docker: its own client, whose errors become one line that says what to do."""

import logging
import os
import re
import subprocess
from collections.abc import Mapping

from core.errors import UserError

NO_ENGINE = ("cannot connect to the docker daemon", "is the docker daemon running", "permission denied while trying")
FAILED_STEP = re.compile(r"^#(\d+) ERROR: process", re.MULTILINE)

_log = logging.getLogger("convoy")


def docker(
    *arguments: str,
    timeout: float | None = None,
    with_errors: bool = False,
    text: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run `docker` with these arguments; gives what it printed, without the last line's end.

    `with_errors`: what it printed to stderr too, as `docker logs` does with what a container wrote there. `text` is
    what it reads; `environment` is added to this process's own.

    Raises:
        UserError: there is no client, no engine answers, or the command failed or took longer than `timeout` seconds.

    """
    try:
        done = subprocess.run(
            ["docker", *arguments],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            env=os.environ | dict(environment or {}),
            check=False,
        )
    except FileNotFoundError:
        raise UserError("there is no `docker` command here: install Docker, and start its engine") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"docker {arguments[0]} did not end in {timeout:g} seconds", exit_code=1) from None
    _log.debug("docker %s: %s%s", " ".join(arguments), done.stdout, done.stderr)
    if done.returncode != 0:
        raise explain(arguments[0], done.stderr or done.stdout)
    return done.stdout.rstrip("\n")


def explain(command: str, errors: str) -> UserError:
    """Make one line of what `docker command` has written to stderr."""
    if any(words in errors.lower() for words in NO_ENGINE):
        return UserError("no Docker engine answers: start it, and see that you may use it with `docker info`")
    # Of a build, what the step that failed has printed; after it come the lines of the Dockerfile around it.
    failed = FAILED_STEP.search(errors)
    lines = re.findall(rf"^#{failed[1]} [\d.]+ (.*)$", errors, re.MULTILINE) if failed else []
    return UserError(f"docker {command} failed: {' '.join(' '.join(lines or [errors]).split())[-500:]}", exit_code=1)
