"""One training: from a job to the checkpoint of its best epoch, resuming where an earlier attempt was stopped."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.accelerators import CUDAAccelerator, MPSAccelerator
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from data.augment import Augmentation, Normalize
from data.errors import UserError
from data.stage import whole_file
from models.classifier import ImageClassifier
from models.config import TrainingConfig
from models.datamodule import ImageDataModule
from models.job import BEST, LAST, TrainingJob
from models.recipes import resolve_recipe
from models.zoo import UNREADABLE, build_network

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves."""

    checkpoint: Path
    """of the epoch with the highest validation accuracy"""
    resumed_from: int | None
    """epochs that an earlier attempt had finished"""


def train(job: TrainingJob, checkpoints: Path, loggers: Sequence[Logger] = ()) -> Trained:
    """Train, from the checkpoint in `checkpoints` where there is one.

    Raises:
        UserError: the options fit neither the network nor the machine, the data is damaged, or the loss is no number.
        KeyboardInterrupt: Ctrl-C; the finished epochs are kept.

    """
    _quieten()
    seed_everything(job.training.seed, verbose=False)
    checkpoints.mkdir(parents=True, exist_ok=True)
    start = _resume_point(checkpoints)
    classifier = build_classifier(job)
    trainer = _trainer(job.training, checkpoints, loggers)
    data = ImageDataModule(job.prepared, job.manifest, batch_size=job.training.batch_size, seed=job.training.seed)
    _fit(trainer, classifier, data, start.checkpoint if start else None)
    return Trained(checkpoints / BEST, start.finished_epochs if start else None)


def build_classifier(job: TrainingJob) -> ImageClassifier:
    """Build the network of a job, its augmentation and its recipe, as they are before the first step."""
    manifest = job.manifest
    flip = manifest.mirror_keeps_label if job.augmentation.flip == "auto" else job.augmentation.flip
    augmentation = Augmentation(
        job.augmentation, manifest.color, crop=job.input_size, flip=flip, seed=job.training.seed
    )
    network = build_network(job.model, len(manifest.classes), job.input_size)
    network = network.to(memory_format=torch.channels_last)
    return ImageClassifier(network, Normalize(manifest.color), augmentation, resolve_recipe(job.training))


def load_classifier(job: TrainingJob, checkpoint: Path) -> ImageClassifier:
    """Build the network of a job with the weights of a checkpoint, ready to evaluate, on the CPU.

    Raises:
        UserError: the checkpoint is missing or damaged.

    """
    # The weights that the training started from may be gone by now.
    start_anew = replace(job, model=job.model.model_copy(update={"weights": None}))
    classifier = build_classifier(start_anew)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint} is missing or damaged: remove {checkpoint.parent}, and `convoy run` trains anew", exit_code=1
        ) from error
    classifier.load_state_dict(state["state_dict"])
    return classifier.eval()


def finished_epochs(checkpoints: Path) -> int | None:
    """Epochs that an earlier attempt has finished, or None."""
    start = _resume_point(checkpoints)
    return start.finished_epochs if start else None


@dataclass(frozen=True)
class _ResumePoint:
    checkpoint: Path
    finished_epochs: int


def _resume_point(checkpoints: Path) -> _ResumePoint | None:
    """Find the last checkpoint, or the best one where the last is damaged; what is damaged is removed."""
    for checkpoint in (checkpoints / LAST, checkpoints / BEST):
        if not checkpoint.is_file():
            continue
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            return _ResumePoint(checkpoint, int(state["epoch"]) + 1)
        except UNREADABLE as error:
            _log.warning("train: %s is damaged (%s) and no longer used", checkpoint, type(error).__name__)
            checkpoint.unlink()
    return None


def _fit(trainer: Trainer, classifier: LightningModule, data: ImageDataModule, resume: Path | None) -> None:
    """Fit, and hand Ctrl-C on as what it is: Lightning makes `sys.exit(1)` of it and leaves the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _check_device(config: TrainingConfig) -> None:
    if config.accelerator == "gpu" and not (CUDAAccelerator.is_available() or MPSAccelerator.is_available()):
        raise UserError("training.accelerator is gpu, and torch finds none here: make it auto or cpu")
    if config.devices > 1:
        raise UserError(f"training.devices is {config.devices}, and more than one is not supported yet: make it 1")


def _trainer(config: TrainingConfig, checkpoints: Path, loggers: Sequence[Logger]) -> Trainer:
    _check_device(config)
    show_bar = sys.stderr.isatty()
    checkpoint_files: dict[str, Any] = {
        "dirpath": checkpoints,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename=Path(BEST).stem, monitor="val/accuracy", mode="max", **checkpoint_files)
    # Every epoch, under one name; the best is written first, so that the last one knows it.
    last = ModelCheckpoint(filename=Path(LAST).stem, every_n_epochs=1, **checkpoint_files)
    progress: list[Callback] = [TQDMProgressBar(leave=True)] if show_bar else [EpochLines()]
    return Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        precision="bf16-mixed" if wants_bf16(config) else "32-true",
        max_epochs=config.max_epochs,
        log_every_n_steps=config.log_every_n_steps,
        logger=list(loggers) or False,
        callbacks=[best, last, *progress],
        plugins=[WholeFileIO()],
        enable_progress_bar=show_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def wants_bf16(config: TrainingConfig) -> bool:
    """Whether to compute in bfloat16: as configured, or where the device does it in hardware."""
    if config.precision != "auto":
        return config.precision == "bf16"
    if torch.cuda.is_available() and config.accelerator != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class WholeFileIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, on whatever file system the folder is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write under another name, then rename."""
        del storage_options
        with whole_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class EpochLines(Callback):
    """One line an epoch, where no progress bar can be shown."""

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        """Tell what the epoch has brought."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        _log.info(
            "epoch %d/%s: train loss %.3f, val loss %.3f, val accuracy %.4f",
            trainer.current_epoch + 1,
            trainer.max_epochs,
            metrics.get("train/loss", float("nan")),
            metrics["val/loss"],
            metrics["val/accuracy"],
        )


def _quieten() -> None:
    """Lightning's advice on hardware and subscriptions is not about what was asked."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Our batches come whole from memory-mapped shards; workers would only copy them once more.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated.*")
