"""Item 1: the device's speed when it only copies, and when it only multiplies."""

import torch

from benchmarks.gpu.device import seconds_of
from benchmarks.gpu.record import COPY, MATRIX, Record


def measure(record: Record) -> None:
    """Copy within the device (bytes read and written), and multiply two square matrices in bf16."""
    device, size = record.device, record.size
    if record.needs(COPY):
        source = torch.empty(size.copied_mb << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device, size.timing)
        record.add(COPY, 2 * source.nbytes / seconds / 1e9, "GB/s", reference="bytes read and written")
    if record.needs(MATRIX):
        left, right = torch.randn(2, size.matrix, size.matrix, device=device, dtype=torch.bfloat16)
        seconds = seconds_of(lambda: left @ right, device, size.timing)
        rate = 2 * size.matrix**3 / seconds
        share = f", {rate / record.roof:.0%} of the roof" if record.roof else ""
        record.add(MATRIX, rate / 1e12, "TFLOP/s", reference=f"{size.matrix} x {size.matrix}{share}")
