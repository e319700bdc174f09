"""Item 2: forward, backward and optimizer step of AlexNet over one resident batch, in one variant after another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from benchmarks.gpu.device import free_memory, seconds_of
from benchmarks.gpu.record import BEST, BEST_SHARE, Record
from models.networks.alexnet import PRESETS, AlexNet
from models.training.train import is_out_of_memory

FLOPS = 4.29e9
"""Of an image at 224 pixels, forward and backward: 714 million multiply-adds, each two operations, three times."""
NUM_CLASSES = 1000


@dataclass(frozen=True)
class Variant:
    """How a step is computed."""

    name: str
    tf32: bool = False
    autocast: bool = False
    """bf16 where it is safe, weights and gradients in float32"""
    bf16: bool = False
    """weights, gradients and optimizer in bf16 too"""
    channels_last: bool = False
    folded: bool = False
    """the first convolution over 4 x 4 blocks of pixels"""
    compiled: bool = False
    graph: bool = False


LAST = "bf16, channels last"
VARIANTS = (
    Variant("fp32"),
    Variant("tf32", tf32=True),
    Variant("bf16", tf32=True, autocast=True),
    Variant(LAST, tf32=True, autocast=True, channels_last=True),
    Variant(f"{LAST}, graph", tf32=True, autocast=True, channels_last=True, graph=True),
    Variant(f"{LAST}, compiled", tf32=True, autocast=True, channels_last=True, compiled=True),
    Variant(f"{LAST}, compiled, graph", tf32=True, autocast=True, channels_last=True, compiled=True, graph=True),
    Variant(f"{LAST}, folded, compiled, graph", True, True, False, True, True, True, True),
    Variant(f"{LAST}, folded, bf16 weights, compiled, graph", True, False, True, True, True, True, True),
)
PLAIN = VARIANTS[3]


class FoldedStem(nn.Module):
    """AlexNet's first convolution, 11 x 11 every 4, as 3 x 3 every 1 over blocks of 4 x 4 pixels: the same sums.

    Three channels leave most of a matrix unit idle, 48 do not. The weights keep their shape, [K, 3, 11, 11].
    """

    def __init__(self, stem: nn.Conv2d) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, S, S] to [N, K, S / 4 - 1, S / 4 - 1], for an S that 4 divides."""
        blocks = F.pixel_unshuffle(F.pad(images, (2, 2, 2, 2)), 4).contiguous(memory_format=torch.channels_last)
        weight = F.pixel_unshuffle(F.pad(self.stem.weight, (0, 1, 0, 1)), 4)
        return F.conv2d(blocks, weight, self.stem.bias)


class Step:
    """Callable: one training step of a variant over one batch that stays."""

    def __init__(self, preset: str, variant: Variant, batch_size: int, pixels: int, device: torch.device) -> None:
        """Make network, optimizer and batch."""
        torch.manual_seed(0)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        dtype = torch.bfloat16 if variant.bf16 else torch.float32
        network = AlexNet(PRESETS[preset], num_classes=NUM_CLASSES, input_size=pixels).to(device, dtype)
        if variant.folded and isinstance(stem := network.features[0], nn.Conv2d) and stem.kernel_size == (11, 11):
            network.features[0] = FoldedStem(stem)
        self.network = network.to(memory_format=layout).train()
        self.optimizer = SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
        images_dtype = torch.bfloat16 if variant.autocast else dtype
        images = torch.randn(batch_size, 3, pixels, pixels, device=device, dtype=images_dtype)
        self.images = images.to(memory_format=layout)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,), device=device)
        self._autocast, self._device = variant.autocast, device
        self._loss = torch.compile(self._compute) if variant.compiled else self._compute
        self._run: Callable[[], None] = self._train
        if variant.graph and device.type == "cuda":
            self._run = self._captured()

    def __call__(self) -> None:
        """Forward, backward, step."""
        self._run()

    def _compute(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.network(images)
        return F.cross_entropy(logits.float(), labels)

    def _train(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(self.images, self.labels).backward()
        self.optimizer.step()

    def _captured(self) -> Callable[[], None]:
        """Warm up on a stream of its own, as a capture demands, and record the whole step."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._train()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._train()
        return graph.replay


@contextmanager
def matrix_precision(*, tf32: bool) -> Iterator[None]:
    """Let float32 products keep 10 bits or 23."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def metric_of(preset: str, variant: Variant, batch_size: int) -> str:
    """Name a row."""
    return f"{preset}, {variant.name}, batch {batch_size}"


def measure(record: Record) -> None:
    """Compare the variants at one batch, then the best one at the others; profile the best of all."""
    first, *others = record.size.batch_sizes
    variants = [variant for variant in VARIANTS if record.size.compiled or not variant.compiled]
    best: tuple[float, str, Variant, int] | None = None
    for preset in ("owt", "bn"):
        found = [(rate, variant) for variant in variants if (rate := rate_of(record, preset, variant, first))]
        if not found:
            continue
        fastest, variant = max(found, key=lambda pair: pair[0])
        rates = [(fastest, first), *((rate_of(record, preset, variant, size), size) for size in others)]
        rate, size = max((rate or 0.0, size) for rate, size in rates)
        if best is None or rate > best[0]:
            best = rate, preset, variant, size
    if best is None:
        return
    _, preset, variant, size = best
    if "kernels" not in record.profile:
        from benchmarks.gpu.profile import kernels_of, layers_of

        with matrix_precision(tf32=True):
            record.keep_profile("kernels", kernels_of(Step(preset, variant, size, record.size.pixels, record.device)))
            record.keep_profile("layers", layers_of(Step(preset, PLAIN, size, record.size.pixels, record.device)))


def rate_of(record: Record, preset: str, variant: Variant, batch_size: int) -> float | None:
    """Images per second of a variant, measured unless it has been; None where even one half as large does not fit."""
    metric = metric_of(preset, variant, batch_size)
    if not record.needs(metric):
        return record.rows[metric].value if metric in record.rows else None
    fitting = batch_size
    while fitting >= max(1, batch_size // 16):
        try:
            rate = fitting / seconds_of_step(record, preset, variant, fitting)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fitting //= 2
            continue
        finally:
            free_memory(record.device)
        smaller = "" if fitting == batch_size else f"; too little memory, measured with {fitting}"
        share = f"{rate * FLOPS / record.roof:.1%} of the roof" if record.roof and record.size.pixels == 224 else ""
        record.add(metric, rate, "images/s", reference=share + smaller)
        _keep_best(record, rate, metric)
        return rate
    record.note(metric, "too little memory, for a sixteenth of it too")
    return None


def _keep_best(record: Record, rate: float, metric: str) -> None:
    """Let the best figure so far stand in the table: the time may be spent before all are measured."""
    best = record.rows.get(BEST)
    if best is not None and best.value is not None and best.value >= rate:
        return
    record.add(BEST, rate, "images/s", goal=83_000, reference=f"goal on an H200; {metric}")
    if record.roof and record.size.pixels == 224:
        record.add(BEST_SHARE, rate * FLOPS / record.roof, "x", goal=0.36, reference="4.29 GFLOP an image")
    else:
        record.note(BEST_SHARE, "the roof of this device is not known, or the images are smaller: no share")


def seconds_of_step(record: Record, preset: str, variant: Variant, batch_size: int) -> float:
    """Seconds of one step; in a function of its own, so that nothing of it is left when memory is given back."""
    with matrix_precision(tf32=variant.tf32):
        step = Step(preset, variant, batch_size, record.size.pixels, record.device)
        return seconds_of(step, record.device, record.size.timing)
