"""`convoy doctor`: what the commands need and this machine or this project lacks, and how to mend that."""

import configparser
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal, NamedTuple

import psutil
from packaging.requirements import Requirement

from core.errors import UserError, one_line
from pipelines.config import Config
from pipelines.session import SERVERS_FILE
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import LEDGER, ROOT
from serving.rollout import chain
from serving.rollout.docker import docker
from serving.rollout.ledger import read

State = Literal["ok", "note", "fault"]
ANSWER_SECONDS = 5
MIN_DISK, LITTLE_DISK = 1e9, 5e9
LITTLE_MEMORY = 2e9
CLOCK_SECONDS = 60
PREFECT_PORT, MLFLOW_PORT = 4200, 5000


class Finding(NamedTuple):
    """What was found, and what to do where that is no good."""

    state: State
    """fault: commands fail; note: some of them do, or do less"""
    name: str
    says: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Look at everything; nothing is changed and nothing heavy is imported."""
    checks: tuple[Callable[[Config], Iterator[Finding]], ...] = (
        *(_python, _packages, _git, _folders, _disk, _memory, _gpu, _ports, _remote, _servers, _docker, _clock),
        _ledger,
    )
    return [finding for check in checks for finding in check(config)]


def _python(_: Config) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("ok" if fits else "fault", "Python", found, "" if fits else "Convoy needs Python 3.11 to 3.13")


def _packages(_: Config) -> Iterator[Finding]:
    """Hold the installed packages against what the tool asks for."""
    try:
        asked = [Requirement(text) for text in requires("convoy") or []]
    except PackageNotFoundError:
        yield Finding("note", "packages", "the tool is not installed as a package, and its needs are not known")
        return
    wrong = []
    for one in asked:
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            if not one.specifier.contains(version(one.name), prereleases=True):
                wrong.append(f"{one.name} {version(one.name)}, needed {one.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
    if wrong:
        yield Finding("fault", "packages", "; ".join(wrong), "install the tool again: `make .venv/.stamp` in a clone")
    else:
        yield Finding("ok", "packages", f"{len(asked)} as the tool asks for")


def _git(_: Config) -> Iterator[Finding]:
    if not shutil.which("git"):
        yield Finding("fault", "git", "not installed", "install git")
        return
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        yield Finding("ok", "git", f"commit {done.stdout.strip()}")
    elif (ROOT / ".git").exists():
        yield Finding("note", "git", "no commit yet: runs name none", "git add . && git commit")
    else:
        yield Finding("fault", "git", "the project is in no repository", "git init")


def _folders(_: Config) -> Iterator[Finding]:
    locked = [str(path) for path in (ROOT / "data", OUTPUTS, ROOT) if path.exists() and not os.access(path, os.W_OK)]
    if locked:
        yield Finding("fault", "permissions", f"no right to write to {', '.join(locked)}", "chown or chmod them")
    else:
        yield Finding("ok", "permissions", "data and outputs can be written")


def _disk(_: Config) -> Iterator[Finding]:
    free = shutil.disk_usage(ROOT).free
    state: State = "fault" if free < MIN_DISK else "note" if free < LITTLE_DISK else "ok"
    yield Finding(state, "disk", f"{free / 1e9:,.1f} GB are free", "" if state == "ok" else "free some space")


def _memory(_: Config) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    says = f"{memory.available / 1e9:,.1f} of {memory.total / 1e9:,.1f} GB are free"
    short = memory.available < LITTLE_MEMORY
    yield Finding(
        "note" if short else "ok", "memory", says, "end other programs, or train smaller batches" if short else ""
    )


def _gpu(_: Config) -> Iterator[Finding]:
    """Ask the driver: importing torch takes seconds."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except FileNotFoundError:
        yield Finding("ok", "GPU", "none: training runs on the processor")
        return
    except subprocess.TimeoutExpired:
        yield Finding(
            "note", "GPU", f"nvidia-smi does not answer in {ANSWER_SECONDS} s", "restart the machine's driver"
        )
        return
    if done.returncode:
        yield Finding("note", "GPU", one_line(UserError(done.stdout + done.stderr)), "install the driver again")
    else:
        yield Finding("ok", "GPU", "; ".join(line.partition(" (UUID")[0] for line in done.stdout.splitlines()))


def _ports(config: Config) -> Iterator[Finding]:
    for name, port in (("serving", config.serving.port), ("Prefect", PREFECT_PORT), ("MLflow", MLFLOW_PORT)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                by_us = SERVERS_FILE.is_file() and name != "serving"
                says = f"{port} is in use{', by `convoy up`' if by_us else ''}"
                remedy = "" if by_us else f"stop what listens there, or choose another port for {name}"
                yield Finding("ok" if by_us else "note", "port", f"{says} ({name})", remedy)
            else:
                yield Finding("ok", "port", f"{port} is free ({name})")


def _remote(_: Config) -> Iterator[Finding]:
    """Read the remote from DVC's own file."""
    parser = configparser.ConfigParser()
    parser.read([ROOT / ".dvc" / "config", ROOT / ".dvc" / "config.local"])
    name = parser.get("core", "remote", fallback="")
    url = next((parser[part].get("url", "") for part in parser.sections() if part.strip("'") == f'remote "{name}"'), "")
    if not url:
        yield Finding("note", "DVC remote", "none: data stays on this machine", "dvc remote add --default NAME URL")
    elif "://" in url:
        yield Finding("ok", "DVC remote", f"{url}; `dvc push` shows whether it takes data")
    else:
        folder = (ROOT / ".dvc" / url).resolve()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        fits = nearest.is_dir() and os.access(nearest, os.W_OK)
        remedy = "" if fits else f"make {folder} a folder that you may write to"
        yield Finding("ok" if fits else "fault", "DVC remote", str(folder), remedy)


def _servers(_: Config) -> Iterator[Finding]:
    settings = Settings()
    addresses = {"MLflow": settings.tracking_uri(ROOT), "Prefect": settings.prefect_api_url or ""}
    for name, address in addresses.items():
        if not address.startswith(("http://", "https://")):
            yield Finding("ok", name, "no server is named: files in outputs are used")
            continue
        shown = address.rpartition("@")[2]
        try:
            _ask(address)
        except OSError as error:
            variable = "MLFLOW_TRACKING_URI" if name == "MLflow" else "PREFECT_API_URL"
            remedy = f"start it, or unset {variable}"
            yield Finding("fault", name, f"{shown} does not answer ({one_line(error)})", remedy)
        else:
            yield Finding("ok", name, f"{shown} answers")


def _ask(address: str) -> str:
    """Ask a server for anything; gives the date that it has. A refusal is an answer too."""
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - http, see above
            return str(answer.headers.get("Date", ""))
    except urllib.error.HTTPError as error:
        return str(error.headers.get("Date", ""))


def _docker(_: Config) -> Iterator[Finding]:
    try:
        answer = docker("version", "--format", "{{.Server.Version}}", timeout=ANSWER_SECONDS)
    except UserError as error:
        yield Finding("note", "Docker", "only images and deployments need it", str(error))
    else:
        yield Finding("ok", "Docker", f"engine {answer}")


def _clock(_: Config) -> Iterator[Finding]:
    """Hold the clock against what was written before now, and against a server's."""
    now, written = time.time(), [entry.when.timestamp() for entry in read(LEDGER)]
    log = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=False) if shutil.which("git") else None
    written += [float(done.stdout)] if done and done.returncode == 0 and done.stdout.strip() else []
    late = max(written, default=0) - now
    difference = now - _server_time(now)
    if late > CLOCK_SECONDS:
        yield Finding("fault", "clock", f"{late:,.0f} s behind what was written here before", "set the clock: NTP")
    elif abs(difference) > CLOCK_SECONDS:
        yield Finding("fault", "clock", f"{difference:+,.0f} s against the MLflow server's", "set the clocks: NTP")
    else:
        yield Finding("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now)))


def _server_time(now: float) -> float:
    address = Settings().tracking_uri(ROOT)
    try:
        return parsedate_to_datetime(_ask(address)).timestamp() if address.startswith("http") else now
    except (OSError, ValueError):
        return now


def _ledger(_: Config) -> Iterator[Finding]:
    found = chain.verify(LEDGER)
    if found.faults:
        yield Finding(
            "fault", "ledger", found.faults[0], "compare it with a backup: `convoy ledger --verify` lists all"
        )
    else:
        yield Finding("ok", "ledger", f"{found.head.num_lines:,} lines, none changed or missing")
