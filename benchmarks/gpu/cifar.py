"""Item 4: CIFAR-10 with the `bn` AlexNet at 32 pixels, several seeds, all images resident on the device."""

import statistics
from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from benchmarks.gpu.device import free_memory, synchronize
from benchmarks.gpu.record import CIFAR, CIFAR_SECONDS, Record
from benchmarks.gpu.sheets import Split, read_sheets
from benchmarks.gpu.synthetic import matrix_precision
from models.networks.alexnet import PRESETS, AlexNet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the training pixels, scaled to 0..1."""
NUM_CLASSES = 10


@dataclass(frozen=True)
class CifarRecipe:
    """What is trained, and how; not yet tried at full size on a GPU."""

    epochs: float
    width: float
    batch_size: int = 512
    peak_rate: float = 0.2
    warm_share: float = 0.2
    """of all steps, in which the rate rises in a line; it falls in a line to 0 over the others"""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.2
    dropout: float = 0.3
    padding: int = 4
    erased: int = 8
    """side of a square that is set to the mean colour"""
    average: float = 0.99
    """share of the averaged weights that stays at each step (EMA)"""


class Cifar:
    """The images on the device, normalized and in the type that is computed in: [N, 3, 32, 32]."""

    def __init__(self, split: Split, device: torch.device, padding: int = 0) -> None:
        """Move a split to `device`, with its edges mirrored outwards by `padding` pixels."""
        images = torch.from_numpy(split[0]).to(device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
        normalized = (images - mean) / std
        padded = F.pad(normalized, (padding,) * 4, mode="reflect") if padding else normalized
        self.images = padded.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(split[1]).to(device)

    def __len__(self) -> int:
        return len(self.labels)


def measure(record: Record) -> None:
    """Train with one seed after another, the first time only to warm up; skip it where there is no folder."""
    if record.cifar10 is None:
        record.note(CIFAR, "skipped: give --cifar10 DIR with the sheets")
        return
    seeds = range(record.size.cifar_seeds)
    if not record.needs(CIFAR, CIFAR_SECONDS, *(_metric(seed) for seed in seeds)):
        return
    recipe = CifarRecipe(record.size.cifar_epochs, record.size.cifar_width)
    limit = record.size.cifar_images
    train = Cifar(read_sheets(record.cifar10, "train", limit), record.device, recipe.padding)
    test = Cifar(read_sheets(record.cifar10, "test", limit), record.device)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, len(train) // 2))
    with matrix_precision(tf32=True):
        trainer = Trainer(recipe, record.device, compiled=record.size.compiled)
        trainer.run(replace(recipe, epochs=min(0.2, recipe.epochs)), train, test, seed=0)
        for seed in seeds:
            if record.needs(_metric(seed), f"{_metric(seed)} seconds"):
                accuracy, seconds = trainer.run(recipe, train, test, seed)
                record.add(_metric(seed), accuracy, "x")
                record.add(f"{_metric(seed)} seconds", seconds, "s")
    _summarize(record, recipe)
    free_memory(record.device)


def _metric(seed: int) -> str:
    return f"CIFAR-10, seed {seed}"


def _summarize(record: Record, recipe: CifarRecipe) -> None:
    rows = [record.rows[_metric(seed)] for seed in range(record.size.cifar_seeds)]
    times = [record.rows[f"{row.metric} seconds"] for row in rows]
    accuracies = [row.value for row in rows if row.value is not None]
    spread = f"{len(rows)} seeds, deviation {statistics.stdev(accuracies):.4f}; {recipe.epochs:g} epochs"
    record.add(CIFAR, statistics.mean(accuracies), "x", goal=0.94, reference=spread)
    record.add(
        CIFAR_SECONDS,
        statistics.mean(time.value for time in times if time.value is not None),
        "s",
        reference="from resident images to the accuracy, without warm-up; 2.59 s: cifar10-airbench94 on an A100",
    )


class Trainer:
    """One network, compiled once, that starts anew with every run."""

    def __init__(self, recipe: CifarRecipe, device: torch.device, *, compiled: bool) -> None:
        """Build it on `device`."""
        spec = replace(PRESETS["bn"], width=recipe.width, dropout=recipe.dropout)
        self._device, self._spec = device, spec
        self._network = self._make().train()
        self._mean_network = deepcopy(self._network).eval()
        self._loss = torch.compile(self._compute) if compiled else self._compute

    def _make(self) -> AlexNet:
        network = AlexNet(self._spec, num_classes=NUM_CLASSES, input_size=32)
        return network.to(self._device).to(memory_format=torch.channels_last)

    def _compute(self, images: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16):
            logits = self._network(images)
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)

    def run(self, recipe: CifarRecipe, train: Cifar, test: Cifar, seed: int) -> tuple[float, float]:
        """Train and measure; returns test accuracy and the seconds of all of it."""
        synchronize(self._device)
        start = perf_counter()
        torch.manual_seed(seed)
        self._network.load_state_dict(self._make().state_dict())
        self._mean_network.load_state_dict(self._network.state_dict())
        self._train(recipe, train)
        accuracy = accuracy_of(self._mean_network, test)
        return accuracy, perf_counter() - start

    def _train(self, recipe: CifarRecipe, train: Cifar) -> None:
        decayed = [weight for weight in self._network.parameters() if weight.ndim > 1]
        others = [weight for weight in self._network.parameters() if weight.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        # A tensor as rate: a float would have the optimizer wait, or compile anew, at every step.
        rate = torch.zeros((), device=self._device)
        optimizer = SGD(
            groups, rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True
        )
        steps_per_epoch = len(train) // recipe.batch_size
        total = max(1, round(recipe.epochs * steps_per_epoch))
        order = torch.empty(0, dtype=torch.int64)
        for step in range(total):
            epoch, place = divmod(step, steps_per_epoch)
            if place == 0:
                order = torch.randperm(len(train), device=self._device)
            chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
            images = augment(train.images[chosen], chosen, epoch, recipe)
            rate.fill_(recipe.peak_rate * rate_factor(step, total, recipe.warm_share))
            optimizer.zero_grad(set_to_none=True)
            self._loss(images, train.labels[chosen], recipe.label_smoothing).backward()
            optimizer.step()
            self._average(min(recipe.average, step / (step + 10)))

    @torch.no_grad()
    def _average(self, kept: float) -> None:
        """Move the averaged weights towards the newest; normalization's counters are taken as they are."""
        pairs = zip(self._mean_network.state_dict().values(), self._network.state_dict().values(), strict=True)
        floats = [(mean, new) for mean, new in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [new for _, new in floats], 1 - kept)


def rate_factor(step: int, total: int, warm_share: float) -> float:
    """From 0 to 1 in a line and back to 0 in a line (one cycle: Smith and Topin 2018)."""
    warm = max(1.0, warm_share * total)
    return (step + 1) / warm if step + 1 <= warm else max(0.0, (total - step) / (total - warm + 1))


def augment(images: Tensor, chosen: Tensor, epoch: int, recipe: CifarRecipe) -> Tensor:
    """Crop at random, mirror every image in every other epoch (as airbench does), and blot out a square."""
    device, count = images.device, len(images)
    corners = torch.randint(2 * recipe.padding + 1, (count, 2), device=device)
    steps = torch.arange(32, device=device)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    # Which half is mirrored in the first epoch follows from a hash of the image's number.
    mirrored = ((chosen * 2654435761) // 65536 + epoch) % 2 == 1
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(count, device=device)[:, None, None]
    cut = images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    edge = torch.randint(-recipe.erased // 2, 32 - recipe.erased // 2, (count, 2, 1), device=device)
    inside = (steps >= edge) & (steps < edge + recipe.erased)
    kept = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
    return (cut * kept[..., None]).permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy_of(network: nn.Module, test: Cifar) -> float:
    """Share of right answers, each from the mean over an image, its mirror image, and both moved by a pixel."""
    hits = torch.zeros((), device=test.labels.device)
    for images, labels in zip(test.images.split(2000), test.labels.split(2000), strict=True):
        moved = F.pad(images, (1,) * 4, mode="reflect")
        views = [images, moved[:, :, :-2, :-2], moved[:, :, 2:, 2:]]
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = sum(network(view) + network(view.flip(3)) for view in views)
        hits += (logits.argmax(1) == labels).sum()  # type: ignore[union-attr]
    return float(hits) / len(test)
