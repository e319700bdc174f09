"""Conditions of figures on a device: its name, roof and clocks; and the measurement of time."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch

ROOFS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 TFLOP/s from data sheets, by words in the device's name. The first match counts."""

QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def roof_of(name: str) -> float | None:
    """Return the maximum bf16 TFLOP/s of a device with this name, or None if it is unknown."""
    words = name.replace("-", " ").split()
    return next((roof for key, roof in ROOFS.items() if set(key.split()) <= set(words)), None)


def name_of(device: torch.device) -> str:
    """Return the name of a CUDA device, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def conditions(device: torch.device) -> dict[str, str]:
    """Ask nvidia-smi for driver and clocks, once, just after the first figure, when the GPU is awake.

    Empty on a CPU, or without nvidia-smi.
    """
    if device.type != "cuda":
        return {}
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", f"--id={identity}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY, (value.strip() for value in done.stdout.split(",")), strict=True))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timing:
    """Repetitions of a step: warm-ups, which do not count, then enough steps for `seconds`, at least two."""

    warm_ups: int = 5
    seconds: float = 1.0


def seconds_of(step: Callable[[], object], device: torch.device, timing: Timing) -> float:
    """Return the mean seconds of `step`, by the device's clock. The host does not wait between steps."""
    for _ in range(timing.warm_ups):
        step()
    synchronize(device)
    start = perf_counter()
    step()
    synchronize(device)
    count = max(2, min(10_000, round(timing.seconds / (perf_counter() - start))))
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(count):
            step()
        return (perf_counter() - start) / count
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / count


def free_memory(device: torch.device) -> None:
    """Free the memory of a measurement, so that the next one starts with an empty device."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
