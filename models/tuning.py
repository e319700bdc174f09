"""What `auto` means for a training: found by a few steps of each candidate on the device that will train."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.nn import functional as F

from data.augment import Normalize
from data.stage import whole_file
from models.config import Precision, TrainingConfig
from models.job import TrainingJob
from models.recipes import make_optimizer, resolve_recipe
from models.zoo import build_network

NUM_STEPS = 4
"""Of each candidate at least, the first of which is not counted: it chooses kernels and touches memory for the first
time."""
MIN_SECONDS = 0.3
"""Of each candidate: among a few short steps, there may be none that nothing has disturbed."""
BF16_CPUS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16")
"""What torch calls the instructions of CPUs that compute in bf16. One without them has taken 25 times as long for
AlexNet as in fp32, 52 s a step."""
MARGIN = 0.95
"""Share of the time of a simpler candidate that a later one must stay under: the rest is noise."""

_log = logging.getLogger("convoy")


class Execution(BaseModel):
    """How a network is computed; what it learns differs by rounding only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision
    channels_last: bool


def tune(job: TrainingJob, note: Path | None = None) -> TrainingJob:
    """Give the job with every `auto` of its computation replaced by what is fastest on this device.

    `note` keeps the choice, so that a training that resumes computes as it has begun.
    """
    candidates = _candidates(job.training)
    if len(candidates) == 1:
        return _with(job, candidates[0])
    chosen = _read(note) if note else None
    if chosen not in candidates:
        chosen = fastest(candidates, _stopwatch(job))
        _log.info("train: %s, channels %s, measured fastest here", chosen.precision, _order(chosen))
    if note:
        note.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as temporary:
            temporary.write_text(chosen.model_dump_json(), encoding="utf-8")
    return _with(job, chosen)


def fastest(candidates: list[Execution], seconds: Callable[[Execution], float]) -> Execution:
    """Take the first candidate, or a later one that is clearly faster."""
    best, best_seconds = candidates[0], seconds(candidates[0])
    for candidate in candidates[1:]:
        if (found := seconds(candidate)) < MARGIN * best_seconds:
            best, best_seconds = candidate, found
    return best


def _candidates(config: TrainingConfig) -> list[Execution]:
    auto: tuple[Precision, ...] = ("fp32", "bf16") if _has_bf16(training_device(config)) else ("fp32",)
    precisions = auto if config.precision == "auto" else (config.precision,)
    layouts = (True, False) if config.channels_last == "auto" else (config.channels_last,)
    return [Execution(precision=precision, channels_last=layout) for precision, layout in product(precisions, layouts)]


def _has_bf16(device: torch.device) -> bool:
    return device.type != "cpu" or any(torch.cpu.get_capabilities().get(name) for name in BF16_CPUS)


def _with(job: TrainingJob, execution: Execution) -> TrainingJob:
    return replace(job, training=job.training.model_copy(update=execution.model_dump()))


def _order(execution: Execution) -> str:
    return "last" if execution.channels_last else "first"


def _read(note: Path) -> Execution | None:
    try:
        return Execution.model_validate_json(note.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def training_device(config: TrainingConfig) -> torch.device:
    """Name the device that Lightning will choose."""
    if config.accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _stopwatch(job: TrainingJob) -> Callable[[Execution], float]:
    """Give a function that times a step, in seconds, on random images that come as the training's do."""
    device, num_classes = training_device(job.training), len(job.manifest.classes)
    start = build_network(job.model.model_copy(update={"weights": None}), num_classes, job.input_size)
    batch_size = max(2, min(job.training.batch_size // job.training.num_processes, job.manifest.num_in("train")))
    stored = torch.randint(256, (batch_size, job.input_size, job.input_size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(num_classes, (batch_size,), device=device)
    normalize = Normalize(job.manifest.color).to(device)

    def seconds(execution: Execution) -> float:
        network = deepcopy(start).to(device).train()
        network.to(memory_format=torch.channels_last if execution.channels_last else torch.contiguous_format)
        optimizer = make_optimizer(resolve_recipe(job.training), network, job.training.batch_size)
        cast = torch.autocast(device.type, torch.bfloat16, enabled=execution.precision == "bf16")

        def step() -> None:
            optimizer.zero_grad()
            with cast:
                # Pixels lie in the order of the stored ones, which a network whose channels come first turns around.
                logits = network(normalize(stored))
            F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return _shortest(step, device)

    return seconds


def _shortest(step: Callable[[], None], device: torch.device) -> float:
    """Give the seconds of the fastest step: what else the machine does only adds to it."""
    times: list[float] = []
    while len(times) < NUM_STEPS or sum(times) < MIN_SECONDS:
        start = perf_counter()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(perf_counter() - start)
    return min(times[1:])
