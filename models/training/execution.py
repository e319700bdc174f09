"""Resolves `auto` for the computation on this machine.

Nothing is timed, so that the same command gives the same weights on the same kind of device, at any load.
"""

from dataclasses import replace

import torch

from core.errors import UserError
from core.machine import num_cores
from models.config import Precision, TrainingConfig
from models.networks.registry import computes_channels_last
from models.training.job import TrainingJob


def settle(job: TrainingJob) -> TrainingJob:
    """Return the job with every `auto` of its computation resolved for this machine.

    The precision is bf16 on GPUs with bf16, and fp32 on all CPUs, so that CPUs with and without bf16 agree.
    """
    training, device = job.training, training_device(job.training)
    precision = _precision(device) if training.precision == "auto" else training.precision
    layout = training.channels_last
    if layout == "auto":
        layout = device.type != "cpu" or computes_channels_last(job.model)
    return replace(job, training=training.model_copy(update={"precision": precision, "channels_last": layout}))


def _precision(device: torch.device) -> Precision:
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def training_device(config: TrainingConfig) -> torch.device:
    """Return the device that Lightning will choose."""
    if config.accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def check_devices(config: TrainingConfig) -> None:
    """Check that the machine has the configured devices.

    Raises:
        UserError: the machine lacks the devices, or the batch cannot be divided equally.

    """
    device = training_device(config)
    if config.accelerator == "gpu" and device.type == "cpu":
        raise UserError("training.accelerator is gpu, and torch finds none here: make it auto or cpu")
    on_gpus = device.type == "cuda"
    available = torch.cuda.device_count() if on_gpus else num_cores()
    if config.devices > available:
        kind = "GPU" if on_gpus else "core"
        raise UserError(f"training.devices is {config.devices}, and this machine has {available} {kind}s: lower it")
    if config.batch_size is not None and config.batch_size % config.num_processes:
        raise UserError(
            f"training.batch_size={config.batch_size} cannot be shared equally by {config.num_processes} processes: "
            "make it a multiple"
        )
