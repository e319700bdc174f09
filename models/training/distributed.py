"""Training in several processes, one per device, started by this module on one machine, or by `torchrun` on several.

A process is `python -m models.training.distributed JOB.json` with the environment of torchrun. Its metrics go to the
journal, which the calling process sends to MLflow. All machines share the workspace.
"""

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files import whole_file
from core.machine import num_cores
from data.stages import MESSAGE_FILE, run_stage
from models.tracking.journal import Journal
from models.tracking.logger import RunLogger
from models.training.job import TrainingJob
from models.training.train import train

STOPPED = 130
"""Exit status of a process that was asked to stop, and has saved its state."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 30
"""Time limit for the other processes after one process has failed."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Assignment:
    """Input of the processes."""

    job: TrainingJob
    checkpoints: Path
    journal: Path

    def write(self, path: Path) -> None:
        """Write the assignment to a file, for processes on all machines with the same workspace."""
        content = self.job.as_json() | {"checkpoints": str(self.checkpoints), "journal": str(self.journal)}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Assignment":
        """Read an assignment from its file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(TrainingJob.from_json(content), Path(content["checkpoints"]), Path(content["journal"]))


def train_on_devices(assignment: Assignment) -> None:
    """Train with `training.devices` processes on each of `training.num_nodes` machines, and wait for their end.

    Raises:
        UserError: the message of a process that failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM. The processes have stopped, and their state is saved.

    """
    path = assignment.checkpoints.with_suffix(".job.json")
    assignment.write(path)
    result = _result_file(assignment)
    result.unlink(missing_ok=True)
    training = assignment.job.training
    if training.num_nodes == 1:
        with tempfile.TemporaryDirectory() as scratch:
            _run_here(path, training.devices, Path(scratch, "message"))
        return
    _log.info(
        "train: on each of the %d machines, in this folder: torchrun --nnodes=%d --nproc-per-node=%d "
        "--rdzv-backend=c10d --rdzv-endpoint=%s:29400 -m models.training.distributed %s",
        *(training.num_nodes, training.num_nodes, training.devices, socket.gethostname(), path),
    )
    _wait_for(result)


def _run_here(assignment: Path, num_processes: int, message: Path) -> None:
    command = [sys.executable, "-P", "-m", "models.training.distributed", str(assignment), "--end-with-parent"]
    environment = _environment(num_processes) | {MESSAGE_FILE: str(message)}
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # closes when this process ends, in any way
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C must reach only this process, which then stops the others
        )
        for rank in range(num_processes)
    ]
    try:
        with _asked_to_stop(processes):
            statuses = _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    _raise_outcome(statuses, message)


def _environment(num_processes: int) -> dict[str, str]:
    """Return torchrun's environment variables. Each process gets its share of the cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "TORCHELASTIC_RUN_ID": "convoy",
        "GROUP_RANK": "0",
        "OMP_NUM_THREADS": str(max(1, num_cores() // num_processes)),
    }


@contextmanager
def _asked_to_stop(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Pass an interruption on, and wait until the processes have saved their state. A second interruption ends them."""
    try:
        yield
    except KeyboardInterrupt:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        _wait(processes)
        raise


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """Wait for all processes. If one fails, the others would wait forever for it, and are killed."""
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        if deadline == float("inf") and any(process.poll() not in (None, 0, STOPPED) for process in processes):
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(POLL_SECONDS)
    return [process.wait() for process in processes]


def _raise_outcome(statuses: Sequence[int], message: Path) -> None:
    if message.is_file():
        raise UserError(message.read_text(encoding="utf-8"), exit_code=1)
    if -signal.SIGKILL in statuses:
        raise UserError(
            "the system has ended a training process, most likely for lack of memory: lower training.batch_size",
            exit_code=1,
        )
    if failed := [status for status in statuses if status not in (0, STOPPED)]:
        raise RuntimeError(f"a training process has ended with exit status {failed[0]}: see its messages above")
    if STOPPED in statuses:
        raise KeyboardInterrupt


def _wait_for(result: Path) -> None:
    while not result.is_file():
        time.sleep(POLL_SECONDS)
    if message := json.loads(result.read_text(encoding="utf-8"))["message"]:
        raise UserError(message, exit_code=1)


def _result_file(assignment: Assignment) -> Path:
    return assignment.checkpoints.with_suffix(".result.json")


def _work(path: Path, environment: Mapping[str, str]) -> None:
    """Run one of the processes."""
    assignment = Assignment.read(path)
    is_first = environment["RANK"] == "0"
    num_nodes = int(environment["WORLD_SIZE"]) // int(environment["LOCAL_WORLD_SIZE"])
    loggers = [RunLogger(assignment.checkpoints.name, Journal(assignment.journal))] if is_first else []
    message = ""
    try:
        train(assignment.job, assignment.checkpoints, loggers, num_nodes=num_nodes)
    except KeyboardInterrupt:
        message = "the training was asked to stop, and its state is kept: the same command goes on from there"
        raise
    except UserError as error:
        message = str(error)
        raise
    finally:
        if is_first:
            with whole_file(_result_file(assignment)) as temporary:
                temporary.write_text(json.dumps({"message": message}), encoding="utf-8")


def _end_with_parent() -> None:
    def wait() -> None:
        while os.read(0, 1):  # not `sys.stdin`, whose lock a daemon thread would hold when Python ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Entry point of a process that torchrun or `train_on_devices` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("assignment", type=Path)
    parser.add_argument("--end-with-parent", action="store_true")
    arguments = parser.parse_args()
    if arguments.end_with_parent:
        _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_stage(lambda: _work(arguments.assignment, os.environ))


if __name__ == "__main__":
    main()
