"""Item 6: does a training that was killed end as one that was not? Each in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer

from benchmarks.gpu.record import RESUMED, RESUMED_CLOSE, OutOfTimeError, Record
from benchmarks.gpu.shards import Shape, make_job, make_prepared
from models.training.job import LAST
from models.training.train import train

NUM_STEPS, KILLED_AFTER = 12, 7
BATCH_SIZE = 8
PIXELS = 64
TOLERANCE = 1e-2
"""Of a weight, where kernels may add in any order: bf16 keeps 8 bits, and 12 steps carry on what differs."""


def measure(record: Record) -> None:
    """Compare the last weights, with deterministic kernels and with the usual ones, which a CPU does not tell apart."""
    for metric, deterministic in ((RESUMED, True), (RESUMED_CLOSE, False))[: 1 if record.device.type == "cpu" else 2]:
        if record.needs(metric):
            difference = _difference(record, deterministic)
            met = difference == 0 if deterministic else difference <= TOLERANCE
            record.add(metric, float(met), "", goal=1, reference=f"largest difference of a weight: {difference:.2g}")


def _difference(record: Record, deterministic: bool) -> float:
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        make_prepared(scratch / "prepared", Shape(NUM_STEPS * BATCH_SIZE, BATCH_SIZE, PIXELS * 8 // 7, 10))
        command = [sys.executable, "-m", __name__, str(scratch), record.device.type, str(int(deterministic))]
        _finish([*command, "whole"], record)
        _kill([*command, "resumed"], record)
        _finish([*command, "resumed"], record)
        whole, resumed = (
            torch.load(scratch / name / LAST, map_location="cpu", weights_only=True)["state_dict"]
            for name in ("whole", "resumed")
        )
    return max(float((whole[name].float() - resumed[name].float()).abs().max()) for name in whole)


def _start(command: list[str]) -> "subprocess.Popen[str]":
    # Without it, cuBLAS has no deterministic products.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)


def _finish(command: list[str], record: Record) -> None:
    with _start(command) as process:
        try:
            process.communicate(timeout=max(1.0, min(record.deadline - monotonic(), 600)))
        except subprocess.TimeoutExpired:
            process.kill()
            raise OutOfTimeError from None
    if process.returncode:
        raise RuntimeError(f"{command} has ended with {process.returncode}")


def _kill(command: list[str], record: Record) -> None:
    """Let it do some steps, each of which is kept, and end it as a power cut would."""
    with _start(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if monotonic() > record.deadline:
                process.kill()
                raise OutOfTimeError
            if line.strip() == str(KILLED_AFTER):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"{command} was not killed, and ended with {process.returncode}")


class _Tell(Callback):
    """Print the number of steps done; it comes after the checkpoint of the step before."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        print(trainer.global_step, flush=True)


def _child(folder: Path, device: str, deterministic: bool, name: str) -> None:
    # An operation that has no deterministic kernel is warned of, and the weights tell whether it matters.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Two epochs of a few steps; a checkpoint after every one.
    options = {"max_epochs": 2, "batch_size": BATCH_SIZE, "checkpoint_minutes": 1e-9}
    job = make_job(folder / "prepared", PIXELS, torch.device(device), options)
    train(job, folder / name, callbacks=[_Tell()])


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", sys.argv[4])
