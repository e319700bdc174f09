"""How much of the machine does training use? Against a bare torch loop over one batch, and torchvision's recipe."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback
from torch import nn
from torch.nn import functional as F

from benchmarks.photos import photo_folder
from benchmarks.report import Report, alternate, run
from data.config import AugmentationConfig, DataConfig
from data.ingest import ingest
from data.prepare import prepare
from data.stage import num_cores
from models.classifier import ImageClassifier
from models.config import ModelConfig, TrainingConfig
from models.job import TrainingJob
from models.journal import Journal
from models.logger import RunLogger
from models.recipes import make_optimizer, resolve_recipe
from models.sender import Sender
from models.tracking import Tracking
from models.train import build_classifier, train
from models.tuning import tune

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
    goal: float
    num_epochs: int = 1
    """of `num_steps` each"""
    batch_size: int = 64


ALEXNET = Case("AlexNet, 224 px", "alexnet", 256, 224, 10, 0.97)
LENET = Case("LeNet, 32 px", "lenet5", 36, 32, 200, 0.90, num_epochs=4)


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
    candidates: dict[str, Callable[[], float]] = {
        "Convoy": partial(_convoy, job, case, scratch),
        "bare loop": partial(_bare, job, case),
    }
    if case is ALEXNET:
        candidates["torchvision's recipe"] = partial(_torchvision, case, photos)
    medians = alternate(candidates, rounds)
    for name, value in medians.items():
        report.add(f"{name}, {case.name}", value, "images/s")
    layout = "channels last" if job.training.channels_last else "channels first"
    report.add(
        f"Convoy / bare loop, {case.name}",
        medians["Convoy"] / medians["bare loop"],
        "x",
        goal=case.goal,
        reference=f"one resident batch of {case.batch_size}, {job.training.precision}, {layout}",
    )
    if case is ALEXNET:
        ratio = medians["Convoy"] / medians["torchvision's recipe"]
        report.add(f"Convoy / torchvision's recipe, {case.name}", ratio, "x", goal=1, reference="DataLoader over JPEGs")
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
    return tune(job)


class StepTimes(Callback):
    """When each step has ended, in each epoch."""

    def __init__(self) -> None:
        """Nothing has ended yet."""
        self.ends: list[list[float]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begin anew: what is done between epochs does not count."""
        self.ends.append([])

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the clock."""
        self.ends[-1].append(perf_counter())


def _convoy(job: TrainingJob, case: Case, scratch: Path) -> float:
    """Everything that a training does, with its metrics in MLflow."""
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    times = StepTimes()
    tracking = Tracking(f"sqlite:///{scratch}/mlflow.db", "benchmark", scratch / "artifacts")
    with tracking.open_run(None, "benchmark", None) as log:
        journal = Journal(scratch / f"{log.run_id}.jsonl")
        with Sender(journal, log):
            train(job, scratch / "checkpoints", [RunLogger(log.run_id, journal)], [times])
    return _rate(times.ends, case)


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
    shutil.rmtree(scratch / "checkpoints", ignore_errors=True)
    job = replace(job, training=job.training.model_copy(update={"max_epochs": LOGGED_EPOCHS}))
    clock = Clock()
    tracking = Tracking(f"sqlite:///{scratch}/mlflow.db", "benchmark", scratch / "artifacts")
    with (
        tracking.open_run(None, "benchmark", None) as log,
        patch.object(ImageClassifier, "_log", clock.timed(ImageClassifier._log)),
        patch.object(ImageClassifier, "log_dict", clock.timed(ImageClassifier.log_dict)),
        patch.object(Sender, "_send_rest", clock.timed(Sender._send_rest)),
    ):
        journal = Journal(scratch / f"{log.run_id}.jsonl")
        start = perf_counter()
        with Sender(journal, log):
            train(job, scratch / "checkpoints", [RunLogger(log.run_id, journal)])
        return clock.seconds / (perf_counter() - start)


def _rate(ends: Sequence[Sequence[float]], case: Case) -> float:
    """Images a second, from when the steps of each epoch have ended."""
    counted = [epoch[NUM_WARM_STEPS - 1 : NUM_WARM_STEPS + case.num_steps] for epoch in ends]
    num_steps = sum(len(epoch) - 1 for epoch in counted)
    return num_steps * case.batch_size / sum(epoch[-1] - epoch[0] for epoch in counted)


def _bare(job: TrainingJob, case: Case) -> float:
    """Forward, backward, step: no data, no augmentation, no metrics."""
    network = build_classifier(job).network.train()
    optimizer = make_optimizer(resolve_recipe(job.training), network, case.batch_size)
    layout = torch.channels_last if job.training.channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    images = torch.randn(case.batch_size, 3, case.seen, case.seen).to(memory_format=layout)
    labels = torch.randint(len(job.manifest.classes), (case.batch_size,))
    ends: list[list[float]] = [[] for _ in range(case.num_epochs)]
    for epoch, _ in product(ends, range(NUM_WARM_STEPS + case.num_steps)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=job.training.precision == "bf16"):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        epoch.append(perf_counter())
    return _rate(ends, case)


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
    return _rate([ends], case)


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("--folder", {"type": Path, "help": "real photographs, <class>/*.jpg; default: made ones"}),
]

if __name__ == "__main__":
    run(measure, OPTIONS)
