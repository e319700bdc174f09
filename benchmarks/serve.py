"""What does an endpoint cost beside the network that it serves? Against a bare server, and against its peers."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch

from benchmarks.made_photos import IMAGENET_SIZE, make_photo
from benchmarks.peers.model import served_on_cpu
from benchmarks.report import Report, alternate, measure_in_turn, medians, ratio, run
from benchmarks.serve_load import Load, at_pace, at_rate, together
from benchmarks.serve_models import export_model
from benchmarks.serve_servers import Running, convoy, peers, running
from core.errors import UserError
from core.machine import num_cores
from data.images.decode import Pixels, Preprocessing, decode
from models.exported.predictor import read_model_manifest
from models.exported.session import Probabilities

NUM_IMAGES = 16
NUM_CLIENTS = 16
FLOOR, CONVOY, UNBATCHED, BENTOML = "Starlette + onnxruntime", "Convoy", "Convoy, one by one", "BentoML"
LIMIT, ALONE = "limit", "no server"


@dataclass(frozen=True)
class Case:
    """A network, and what is asked of its endpoint."""

    title: str
    network: str
    size: int
    crop: int
    photo: tuple[int, int]
    """width and height of the images that are posted"""
    batch_goal: float
    """of the throughput with batches against that without"""
    limit_goal: float | None = None
    """of the throughput with batches against onnxruntime's"""
    in_int8: bool = False
    """as `cpu` serves it where the gate has accepted that; otherwise in fp32"""
    more: int = 1
    """times as many requests: the system counts processor time in hundredths of a second"""


ALEXNET = Case("AlexNet", "alexnet", 256, 224, IMAGENET_SIZE, 1.6, 0.9)
"""Gains from batches."""
ALEXNET_INT8 = Case("AlexNet int8", "alexnet", 256, 224, IMAGENET_SIZE, 1.0, in_int8=True)
"""As `cpu` serves it, unless the gate refuses it."""
MOBILENET = Case("MobileNet", "mobilenet_v3_small", 256, 224, IMAGENET_SIZE, 1.0)
"""Does not."""
LENET = Case("LeNet", "lenet5", 36, 32, (36, 36), 1.0, more=10)
"""Costs next to nothing: what is measured of its endpoint is all the rest."""
CASES = (ALEXNET, ALEXNET_INT8, MOBILENET, LENET)


def measure(arguments: argparse.Namespace) -> Report:
    """Compare the endpoints of all three; those of the target `gpu` with the floor, which computes on the CPU.

    Raises:
        UserError: there is no GPU for it.

    """
    on_gpu = arguments.target == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here, and without one the target gpu is slow, as is known")
    report = Report("serve-gpu" if on_gpu else "serve")
    for case in (ALEXNET, MOBILENET, LENET) if on_gpu else CASES:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            scratch, rng = Path(name), np.random.default_rng(0)
            images = [make_photo(rng, *case.photo) for _ in range(NUM_IMAGES)]
            model = export_model(
                case.network, scratch / "model", case.size, case.crop, in_int8=case.in_int8, for_gpu=on_gpu
            )
            others = peers(model, scratch)
            wanted = [*convoy(model, scratch, arguments.target), *(others[:1] if on_gpu else others)]
            servers = {
                server.name: stack.enter_context(running(server, scratch / f"{number}.log"))
                for number, server in enumerate(wanted)
                if case is not LENET or server.name in (CONVOY, FLOOR)
            }
            comparison = _Comparison(report, case, servers, images, arguments)
            if case is LENET:
                comparison.measure_overhead()
            elif on_gpu:
                comparison.measure_device()
            else:
                comparison.measure_all(model)
    return report


class _Comparison:
    """All servers of one network, all of them running; one at a time is asked."""

    def __init__(
        self,
        report: Report,
        case: Case,
        servers: dict[str, Running],
        images: Sequence[bytes],
        arguments: argparse.Namespace,
    ) -> None:
        self._report, self._case, self._servers, self._images = report, case, servers, images
        self._rounds, self._num_requests = arguments.rounds, arguments.requests * case.more

    def measure_all(self, model: Path) -> None:
        """Add all figures of a network."""
        self._measure_one_client(model)
        self._measure_many_clients(model)
        self._measure_latency()
        self._measure_memory(model)

    def measure_device(self) -> None:
        """Add what a GPU answers, to one client and to many."""
        seconds = self._alternate(
            lambda server: together(server.call(self._images), 1, self._num_requests).percentile(50)
        )
        for name, value in seconds.items():
            self._add(f"{name}: latency, one client", 1e3 * value, "ms")
        for name, value in self._alternate(self._rate_together).items():
            self._add(f"{name}: {NUM_CLIENTS} clients", value, "images/s")
        self._measure_latency()

    def _add(self, metric: str, value: float, unit: str, **more: object) -> None:
        self._report.add(f"{metric}, {self._case.title}", value, unit, **more)  # type: ignore[arg-type]

    def _measure_one_client(self, model: Path) -> None:
        candidates = {name: partial(self._cpu_ms, server) for name, server in self._servers.items()}
        alone = partial(cpu_ms_alone, model, self._images, self._num_requests)
        cpu = alternate({**candidates, ALONE: alone}, self._rounds)
        for name, value in cpu.items():
            self._add(f"{name}: processor time of a prediction", value, "ms")
        reference = "processor time of a prediction, one client"
        self._add(f"{CONVOY} / {FLOOR}", cpu[CONVOY] / cpu[FLOOR], "x", at_most=1.06, reference=reference)
        reference += f"; decoding and predicting without a server: {cpu[ALONE] / cpu[BENTOML]:.2f} x"
        self._add(f"{CONVOY} / {BENTOML}", cpu[CONVOY] / cpu[BENTOML], "x", at_most=0.75, reference=reference)

    def measure_overhead(self) -> None:
        """Add what the endpoint does beside decoding and predicting, metrics included."""
        cpu = self._alternate(self._cpu_ms)
        self._add(
            f"{CONVOY} - {FLOOR}", cpu[CONVOY] - cpu[FLOOR], "ms", at_most=0.1,
            reference=f"processor time of an image of {self._case.photo[0]} px; {FLOOR}: {cpu[FLOOR]:.3f} ms",
        )  # fmt: skip

    def _measure_many_clients(self, model: Path) -> None:
        costs: dict[str, list[float]] = {name: [] for name in self._servers}

        def rate(name: str, server: Running) -> float:
            cost, found = self._ask(server, NUM_CLIENTS)
            costs[name].append(cost)
            return found

        candidates = {name: partial(rate, name, server) for name, server in self._servers.items()}
        # The limit comes right after what is held against it: a machine's speed changes from minute to minute.
        limit_of_batches = partial(batch_limit, model, self._images, self._num_requests)
        convoy_and_limit = {CONVOY: candidates[CONVOY], LIMIT: limit_of_batches}
        figures = measure_in_turn({**convoy_and_limit, **candidates}, self._rounds)
        rates = medians(figures)
        limit = rates.pop(LIMIT)
        for name, value in rates.items():
            self._add(f"{name}: {NUM_CLIENTS} clients", value, "images/s")
        ours, theirs = (statistics.median(costs[name][1:]) for name in (CONVOY, BENTOML))  # the first round warms up
        reference = f"processor time of a prediction, {NUM_CLIENTS} clients"
        self._add(f"{CONVOY} / {BENTOML}, {NUM_CLIENTS} clients", ours / theirs, "x", at_most=0.75, reference=reference)
        self._add_gain(rates)
        reference = f"onnxruntime in batches of {NUM_CLIENTS}, less the decoding: {limit:.0f} images/s"
        share = ratio(figures[CONVOY], figures[LIMIT])
        self._add(f"{CONVOY} / {LIMIT}", share, "x", goal=self._case.limit_goal, reference=reference)

    def _add_gain(self, rates: dict[str, float]) -> None:
        """Add what batches bring; an endpoint that was packed without them is not held against itself."""
        gain, reference = 1.0, "measured when it was packed: batches do not pay, so it makes none"
        if UNBATCHED in rates:
            gain, reference = rates[CONVOY] / rates[UNBATCHED], "its own throughput without batches"
        self._add(f"{CONVOY} / {UNBATCHED}", gain, "x", goal=self._case.batch_goal, reference=reference)

    def _measure_latency(self) -> None:
        call, number = self._servers[CONVOY].call(self._images), 2 * self._num_requests
        rates, random, steady = [], [], []
        for _ in range(self._rounds):
            rate = 0.8 * self._rate_together(self._servers[CONVOY])
            rates.append(rate)
            random.append(at_rate(call, rate, number))
            steady.append(at_pace(call, rate, number, NUM_CLIENTS))
        load = f"at 80 % load, {statistics.median(rates):.0f} requests/s"
        self._add_tail("p99 / p50", random, f"{load} at random times", at_most=3)
        self._add_tail("p99 / p50, steady", steady, f"the same from {NUM_CLIENTS} clients, each at a pace of its own")

    def _add_tail(self, metric: str, loads: Sequence[Load], when: str, at_most: float | None = None) -> None:
        p50, p99 = ([1e3 * load.percentile(percent) for load in loads] for percent in (50, 99))
        reference = f"{when}; p50 {statistics.median(p50):.1f} ms, p99 {statistics.median(p99):.1f} ms"
        self._add(f"{CONVOY}: {metric}", ratio(p99, p50), "x", at_most=at_most, reference=reference)

    def _measure_memory(self, model: Path) -> None:
        together(self._servers[CONVOY].call(self._images), NUM_CLIENTS, 1000)
        model_bytes = (model / served_on_cpu(read_model_manifest(model)).model_file).stat().st_size
        over = (self._servers[CONVOY].memory_bytes() - model_bytes) / 1e6
        reference = "after 1,000 requests of 16 clients, all processes"
        self._add(f"{CONVOY}: memory over the model", over, "MB", at_most=200, reference=reference)

    def _alternate(self, figure: Callable[[Running], float], only: Sequence[str] = ()) -> dict[str, float]:
        names = only or list(self._servers)
        return alternate({name: partial(figure, self._servers[name]) for name in names}, self._rounds)

    def _cpu_ms(self, server: Running) -> float:
        return self._ask(server, 1)[0]

    def _rate_together(self, server: Running) -> float:
        return self._ask(server, NUM_CLIENTS)[1]

    def _ask(self, server: Running, num_clients: int) -> tuple[float, float]:
        """Ask from so many clients; gives milliseconds of processor time for each answer, and answers a second."""
        call, before = server.call(self._images), server.cpu_seconds()
        load = together(call, num_clients, self._num_requests)
        return 1e3 * (server.cpu_seconds() - before) / self._num_requests, load.rate


def cpu_ms_alone(model: Path, images: Sequence[bytes], number: int) -> float:
    """Milliseconds of processor time that decoding and predicting an image take by themselves, on all cores."""
    predict, spec = _open(model)
    predict(decode(images[0], spec)[None])
    start = time.process_time()
    for image in islice(cycle(images), number):
        predict(decode(image, spec)[None])
    return 1e3 * (time.process_time() - start) / number


def batch_limit(model: Path, images: Sequence[bytes], number: int) -> float:
    """Images a second that the network predicts in full batches, on all cores, if these also decode each image.

    Over all the time that some `number` of images take, as the rate of a server is: a median would pass over whatever
    disturbs the machine now and then.
    """
    predict, spec = _open(model)
    pixels = np.stack([decode(image, spec) for image in images])
    times = max(1, number // len(images))
    network = _seconds(lambda: predict(pixels), times) / len(images)
    decoding = _seconds(lambda: [decode(image, spec) for image in images], times) / len(images)
    return 1 / (network + decoding / num_cores())


def _open(model: Path) -> tuple[Callable[[Pixels], Probabilities], Preprocessing]:
    manifest = read_model_manifest(model)
    return resolve_name(served_on_cpu(manifest).predictor)(model), manifest.preprocessing


def _seconds(work: Callable[[], object], times: int) -> float:
    """Seconds that it takes in the mean, once it has been done once."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


OPTIONS: list[tuple[str, dict[str, object]]] = [
    ("--requests", {"type": int, "default": 400, "help": "requests to each server in each round"}),
    ("--target", {"choices": ["cpu", "gpu"], "default": "cpu", "help": "what Convoy's endpoint computes on"}),
]

if __name__ == "__main__":
    run(measure, OPTIONS)
