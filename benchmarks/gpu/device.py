"""What the figures of a device depend on: its name, roof and clocks, and how its time is taken."""

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
"""Dense bf16 TFLOP/s of the data sheets, by what the device's name contains; of several, the first counts."""

QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def roof_of(name: str) -> float | None:
    """TFLOP/s in bf16 that a device of this name can do at most; None where it is not known."""
    words = name.replace("-", " ").split()
    return next((roof for key, roof in ROOFS.items() if set(key.split()) <= set(words)), None)


def name_of(device: torch.device) -> str:
    """Name the device, `cpu` where it is none of CUDA's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@cache
def conditions(device: torch.device) -> dict[str, str]:
    """Ask nvidia-smi for driver and clocks, once, when the first figure has just been measured and the GPU is awake.

    Nothing on a CPU, or where there is no such program.
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
    """Wait for all that the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timing:
    """How long a step is repeated: some not counted, then as many as fill `seconds`, at least two."""

    warm_ups: int = 5
    seconds: float = 1.0


def seconds_of(step: Callable[[], object], device: torch.device, timing: Timing) -> float:
    """Mean seconds of `step`, by the device's own clock; steps follow each other without the host waiting between."""
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
    """Give back what a measurement has held, so that the next one finds an empty device."""
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
