"""How much of the machine does training use? Against a bare torch loop over one batch, and torchvision's recipe."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter, thread_time
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback
from torch import nn
from torch.nn import functional as F

from benchmarks.made_photos import photo_folder
from benchmarks.report import Report, measure_in_turn, medians, ratio, run
from core.machine import num_cores
from data.config import AugmentationConfig, DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from models.config import ModelConfig, TrainingConfig
from models.tracking.journal import Journal
from models.tracking.logger import RunLogger
from models.tracking.runs import Tracking
from models.tracking.sender import Sender
from models.training.classifier import ImageClassifier
from models.training.execution import settle
from models.training.job import TrainingJob
from models.training.optimizers import make_optimizer
from models.training.recipes import resolve_recipe
from models.training.train import build_classifier, train

NUM_WARM_STEPS = 3
"""Not counted at the start of an epoch: the first ones choose kernels and touch memory for the first time."""
LOGGED_EPOCHS = 12
"""Long enough for metrics to be sent several times while it trains."""
HELD_OUT = 0.4
"""Of the images, kept from training by the default splits or nearly so."""


@dataclass(frozen=True)
class Case:
    """One network at one size, with the default batch."""

    name: str
    network: str
    stored: int
    seen: int
    num_steps: int
    goal: float | None
    num_epochs: int = 1
    """of `num_steps` each, with the bare loop before and after each of them"""
    batch_size: int = 64


ALEXNET = Case("AlexNet, 224 px", "alexnet", 256, 224, 10, 0.97, num_epochs=2)
LENET = Case("LeNet, 32 px", "lenet5", 36, 32, 200, None, num_epochs=8)


def measure(arguments: argparse.Namespace) -> Report:
    """Train both networks in turn with their peers."""
    report = Report("train")
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        for case in (ALEXNET, LENET):
            num_images = int(case.batch_size * (case.num_steps + NUM_WARM_STEPS) / (1 - HELD_OUT))
            photos = photo_folder(arguments.folder, scratch / case.network / "photos", num_images)
            _measure_case(case, photos, scratch / case.network, arguments.rounds, report)
    return report


def _measure_case(case: Case, photos: Path, scratch: Path, rounds: int, report: Report) -> None:
    job = _job(case, photos, scratch)
    sides: list[SideBySide] = []

    def convoy() -> float:
        sides.append(_side_by_side(job, case, scratch))
        return median(sides[-1].ours)

    candidates: dict[str, Callable[[], float]] = {"Convoy": convoy}
    if case is ALEXNET:
        candidates["torchvision's recipe"] = partial(_torchvision, case, photos)
    figures = measure_in_turn(candidates, rounds)
    counted = sides[1:]
    bare = median(rate for side in counted for rate in side.bare)
    against_bare = median(each for side in counted for each in side.ratios)
    for name, value in {**medians(figures), "bare loop": bare}.items():
        report.add(f"{name}, {case.name}", value, "images/s")
    layout = "channels last" if job.training.channels_last else "channels first"
    reference = f"one resident batch of {case.batch_size}, {job.training.precision}, {layout}"
    report.add(f"Convoy / bare loop, {case.name}", against_bare, "x", goal=case.goal, reference=reference)
    if case is ALEXNET:
        gain = ratio(figures["Convoy"], figures["torchvision's recipe"])
        report.add(f"Convoy / torchvision's recipe, {case.name}", gain, "x", goal=1, reference="DataLoader over JPEGs")
        return
    every = f"every {job.training.log_every_n_steps} steps; journal, progress, and the thread that sends to MLflow"
    report.add(f"logging / training, {case.name}", _logging_share(job, scratch), "x", at_most=0.01, reference=every)


def _job(case: Case, photos: Path, scratch: Path) -> TrainingJob:
    config = DataConfig(source="folder", path=photos, size=case.stored)
    ingest(config, scratch / "raw", scratch / "state.json")
    prepare(config, scratch / "raw", scratch / "prepared", scratch / "parts")
    job = TrainingJob(
        scratch / "prepared",
        "benchmark",
        ModelConfig(network=case.network, input_size=case.seen),
        AugmentationConfig(),
        TrainingConfig(max_epochs=case.num_epochs, batch_size=case.batch_size, accelerator="cpu"),
    )
    return settle(job)


class BareLoop:
    """Forward, backward, step over one resident batch: no data, no augmentation, no metrics."""

    def __init__(self, job: TrainingJob, case: Case) -> None:
        """Build the network and the batch."""
        self._case, self._network = case, build_classifier(job).network.train()
        self._is_bf16 = job.training.precision == "bf16"
        self._optimizer = make_optimizer(resolve_recipe(job.training), self._network, case.batch_size)
        layout = torch.channels_last if job.training.channels_last else torch.contiguous_format
        self._network.to(memory_format=layout)
        self._images = torch.randn(case.batch_size, 3, case.seen, case.seen).to(memory_format=layout)
        self._labels = torch.randint(len(job.manifest.classes), (case.batch_size,))

    def rate(self) -> float:
        """Images a second, over as many steps as Convoy's of an epoch that count."""
        ends = []
        for _ in range(NUM_WARM_STEPS + self._case.num_steps):
            self._optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
                logits = self._network(self._images)
            F.cross_entropy(logits.float(), self._labels).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            ends.append(perf_counter())
        return _rate(ends, self._case)


class SideBySide(Callback):
    """Has the bare loop run before each epoch and after the last one: what neighbours do changes within seconds."""

    def __init__(self, loop: BareLoop, case: Case) -> None:
        """Nothing has run yet."""
        self._loop, self._case = loop, case
        self._ends: list[float] = []
        self.ours: list[float] = []
        self.bare: list[float] = []

    @property
    def ratios(self) -> list[float]:
        """Each epoch against what was around it."""
        around = [mean(pair) for pair in pairwise(self.bare)]
        return [ours / bare for ours, bare in zip(self.ours, around, strict=True)]

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin anew: what is done between epochs does not count."""
        self.bare.append(self._loop.rate())
        self._ends = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the clock."""
        self._ends.append(perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:
        """Take the epoch's rate."""
        self.ours.append(_rate(self._ends, self._case))

    def on_train_end(self, *_: Any) -> None:
        """Let the last epoch have something after it."""
        self.bare.append(self._loop.rate())


def _side_by_side(job: TrainingJob, case: Case, scratch: Path) -> SideBySide:
    """Everything that a training does, and the bare loop between its epochs."""
    times = SideBySide(BareLoop(job, case), case)
    _train(job, scratch, [times])
    return times


def _train(job: TrainingJob, scratch: Path, callbacks: Sequence[Callback] = ()) -> float:
    """Train from the beginning, with metrics in MLflow; returns the seconds until all of them have arrived."""
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    tracking = Tracking(f"sqlite:///{scratch}/mlflow.db", "benchmark", scratch / "artifacts")
    with tracking.open_run(None, "benchmark", None) as log:
        journal = Journal(scratch / f"{log.run_id}.jsonl")
        start = perf_counter()
        with Sender(journal, log):
            train(job, scratch / "checkpoints", [RunLogger(log.run_id, journal)], callbacks)
        return perf_counter() - start


class Clock:
    """Seconds spent in functions: a thread's own, which do not count what others do meanwhile."""

    def __init__(self) -> None:
        """Nothing has been spent."""
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Give the function, watched."""

        def run(*arguments: Any, **options: Any) -> Any:
            start = thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += thread_time() - start

        return run


def _logging_share(job: TrainingJob, scratch: Path) -> float:
    """Train for some epochs, long enough to send more than once; gives what logging has of the time."""
    job = replace(job, training=job.training.model_copy(update={"max_epochs": LOGGED_EPOCHS}))
    clock = Clock()
    with (
        patch.object(ImageClassifier, "_log", clock.timed(ImageClassifier._log)),
        patch.object(ImageClassifier, "log_dict", clock.timed(ImageClassifier.log_dict)),
        patch.object(Sender, "_send_rest", clock.timed(Sender._send_rest)),
    ):
        seconds = _train(job, scratch)
    return clock.seconds / seconds


def _rate(ends: Sequence[float], case: Case) -> float:
    """Images a second, from when the steps of an epoch have ended."""
    counted = ends[NUM_WARM_STEPS - 1 : NUM_WARM_STEPS + case.num_steps]
    return (len(counted) - 1) * case.batch_size / (counted[-1] - counted[0])


def _torchvision(case: Case, photos: Path) -> float:
    """Its reference script's defaults for AlexNet on one device: random resized crop, mirror, SGD, 32 bits."""
    from torchvision.datasets import ImageFolder
    from torchvision.models import alexnet
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.RandomResizedCrop(case.seen), v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float, True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    dataset = ImageFolder(photos / "train" if (photos / "train").is_dir() else photos, transform)
    loader = torch.utils.data.DataLoader(
        dataset, case.batch_size, shuffle=True, num_workers=num_cores(), drop_last=True
    )
    network = alexnet(num_classes=len(dataset.classes)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    ends: list[float] = []
    for images, labels in loader:
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(perf_counter())
        if len(ends) == NUM_WARM_STEPS + case.num_steps:
            break
    return _rate(ends, case)


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("--folder", {"type": Path, "help": "real photographs, <class>/*.jpg; default: made ones"}),
]

if __name__ == "__main__":
    run(measure, OPTIONS)
