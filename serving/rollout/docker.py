"""Runs the `docker` client. Its errors become one line that says what to do."""

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
    """Run `docker` with `arguments`, and return its output without trailing newlines.

    Args:
        arguments: command line after `docker`.
        timeout: in seconds.
        with_errors: include stderr, on which `docker logs` prints the container's stderr.
        text: stdin of the command.
        environment: variables in addition to this process's environment.

    Raises:
        UserError: `docker` is not installed, no engine answers, or the command failed or timed out.

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
    """Make a one-line error from the stderr of `docker command`."""
    if any(words in errors.lower() for words in NO_ENGINE):
        return UserError("no Docker engine answers: start it, and see that you may use it with `docker info`")
    # For a build, keep the failed step's output. Docker appends an excerpt of the Dockerfile.
    failed = FAILED_STEP.search(errors)
    lines = re.findall(rf"^#{failed[1]} [\d.]+ (.*)$", errors, re.MULTILINE) if failed else []
    return UserError(f"docker {command} failed: {' '.join(' '.join(lines or [errors]).split())[-500:]}", exit_code=1)
