"""Item 3: the same step at the end of Convoy's whole pipeline, from memory-mapped shards to logged metrics."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import free_memory, seconds_of, synchronize
from benchmarks.gpu.record import AUGMENTATION, BUSY, FED, FED_SHARE, Record
from benchmarks.gpu.shards import Shape, make_job, make_prepared
from benchmarks.gpu.synthetic import NUM_CLASSES, matrix_precision
from models.tracking.journal import Journal
from models.tracking.logger import RunLogger
from models.training.job import TrainingJob
from models.training.optimizers import make_optimizer
from models.training.recipes import resolve_recipe
from models.training.train import build_classifier, train

RESIDENT = "fed, AlexNet bn, resident"
NUM_WARM_STEPS = 5
"""Not counted: the first ones compile, choose kernels and pin memory."""
BATCH_SIZE = 1024
STORED = 8 / 7
"""Stored pixels a side for each that is seen: 256 for 224."""


def measure(record: Record) -> None:
    """Train for some steps from streamed shards and from resident images; time the parts alone."""
    logging.getLogger("convoy").setLevel(logging.WARNING)
    size, smoke = record.size, record.size.name == "smoke"
    batch_size = 2 if smoke else BATCH_SIZE
    if not record.needs(FED, FED_SHARE, RESIDENT, AUGMENTATION, BUSY):
        return
    with tempfile.TemporaryDirectory() as scratch_name, matrix_precision(tf32=True):
        scratch = Path(scratch_name)
        steps = size.fed_steps + NUM_WARM_STEPS
        repeats = -(-steps * batch_size // size.fed_images)
        stored = round(size.pixels * STORED)
        shape = Shape(size.fed_images, 2 * NUM_WARM_STEPS, stored, NUM_CLASSES, repeats)
        options = {"max_epochs": 1, "batch_size": batch_size, "compile": "default" if size.compiled else "none"}
        job = make_job(make_prepared(scratch / "prepared", shape), size.pixels, record.device, options)
        step_seconds = _alone(record, job)
        for metric, resident in ((FED, False), (RESIDENT, True)):
            if record.needs(metric):
                seconds = _train(record, job, resident, scratch / metric).seconds_a_step
                record.add(metric, batch_size / seconds, "images/s", reference=f"batch {batch_size}, bf16, compiled")
                if metric == FED:
                    record.add(FED_SHARE, step_seconds / seconds, "x", goal=0.97, reference=REFERENCE)
        if record.needs(BUSY):
            _measure_busy(record, job, scratch / "profiled")
    free_memory(record.device)


REFERENCE = "the same network, batch and optimizer without data, in the same run"


def _alone(record: Record, job: TrainingJob) -> float:
    """Seconds of the step on one resident batch, and of the augmentation, each without the other."""
    device, batch_size = record.device, job.training.batch_size
    classifier = build_classifier(job).to(device).train()
    network = classifier.network.to(memory_format=torch.channels_last)
    if job.training.compile != "none":
        network.compile()
    optimizer = make_optimizer(resolve_recipe(job.training), network, batch_size)
    stored = job.manifest.size
    images = torch.randint(256, (batch_size, stored, stored, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(NUM_CLASSES, (batch_size,), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        pixels = classifier.augmentation(images, labels, 0, 0).pixels

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(pixels)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()

    def augment() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            classifier.augmentation(images, labels, 0, 0)

    seconds = seconds_of(step, device, record.size.timing)
    if record.needs(AUGMENTATION):
        ratio = seconds / seconds_of(augment, device, record.size.timing)
        record.add(AUGMENTATION, ratio, "x", goal=20, reference="at most 5 % of the step; crop, flip, PCA colour")
    return seconds


class Steps(Callback):
    """When steps have ended, by the host, which has waited for the device only at the first and the last that count.

    With `traced`, what the device does in between is recorded.
    """

    def __init__(self, last: int, device: torch.device, *, traced: bool = False) -> None:
        """Count from the end of the last step that warms up to that of step `last`."""
        self._first, self._last, self._device = NUM_WARM_STEPS, last, device
        on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        self._profiler = profile(activities=activities) if traced else None
        self._begin = self._end = 0.0
        self.busy = 0.0

    @property
    def seconds_a_step(self) -> float:
        """Mean over all that count."""
        return (self._end - self._begin) / (self._last - self._first)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Look at the clock."""
        if trainer.global_step == self._first:
            synchronize(self._device)
            if self._profiler:
                self._profiler.start()
            self._begin = perf_counter()
        elif trainer.global_step == self._last:
            synchronize(self._device)
            self._end = perf_counter()
            if self._profiler:
                self._profiler.stop()
                self.busy = self._busy_seconds() / (self._end - self._begin)

    def _busy_seconds(self) -> float:
        assert self._profiler is not None
        wanted = DeviceType.CUDA if self._device.type == "cuda" else DeviceType.CPU
        events = (event for event in self._profiler.events() or () if event.device_type == wanted)
        return covered((event.time_range.start, event.time_range.end) for event in events) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _train(record: Record, job: TrainingJob, resident: bool, folder: Path, *, traced: bool = False) -> Steps:
    """Everything that a training does, with its metrics written to the journal."""
    training = job.training.model_copy(update={"resident": resident})
    job = TrainingJob(job.prepared, job.data_version, job.model, job.augmentation, training)
    steps = Steps(record.size.fed_steps + NUM_WARM_STEPS - 1, record.device, traced=traced)
    folder.mkdir()
    train(job, folder / "checkpoints", [RunLogger("noise", Journal(folder / "metrics.jsonl"))], [steps])
    return steps


def _measure_busy(record: Record, job: TrainingJob, folder: Path) -> None:
    busy = _train(record, job, False, folder, traced=True).busy
    if record.device.type == "cuda":
        record.add(BUSY, busy, "x", goal=0.9, reference="share of the time in which a kernel or copy ran, streamed")
    else:
        record.note(BUSY, "a CPU is no GPU")
