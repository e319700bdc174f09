"""How a network is computed on this machine: what `auto` stands for.

Nothing here is timed: on the same kind of device, the same command gives the same weights, however busy the machine is.
"""

from dataclasses import replace

import torch

from core.errors import UserError
from core.machine import num_cores
from models.config import Precision, TrainingConfig
from models.networks.registry import computes_channels_last
from models.training.job import TrainingJob


def settle(job: TrainingJob) -> TrainingJob:
    """Give the job with every `auto` of its computation replaced by what this machine computes in.

    That is bf16 on GPUs that have it, and fp32 on every processor: processors with and without bf16 then agree.
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
    """Name the device that Lightning will choose."""
    if config.accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def check_devices(config: TrainingConfig) -> None:
    """Find out whether the machine has what is asked for.

    Raises:
        UserError: it has not, or the batch cannot be shared.

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
