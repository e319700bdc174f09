"""Training: from a job to the checkpoint of its best epoch. An interrupted training is resumed."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging
from pytorch_lightning.loggers import Logger
from torch import nn

from core.errors import UserError
from core.files import remove_unfinished
from core.tool import shows_progress
from data.augmentation.augment import Augmentation
from data.images.decode import Normalization
from models.config import TrainingConfig
from models.networks.registry import build_network, start_from_weights
from models.networks.weights import NORMALIZATION, UNREADABLE
from models.training.checkpoints import Checkpoints, WholeFileIO, find_resume_point
from models.training.classifier import ImageClassifier
from models.training.datamodule import ImageDataModule
from models.training.execution import check_devices, training_device
from models.training.interruption import Interruption, Stopped
from models.training.job import BEST, START, TrainingJob
from models.training.progress import Bar, EpochLines
from models.training.recipes import Recipe

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Trained:
    """Result of a training."""

    checkpoint: Path
    """checkpoint of the epoch with the highest validation accuracy"""
    resumed_from: int | None
    """number of steps in earlier attempts"""


def train(
    job: TrainingJob,
    checkpoints: Path,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    *,
    num_nodes: int | None = None,
) -> Trained:
    """Train a job from `models.training.execution.settle`, resuming from a checkpoint in `checkpoints`, if any.

    With `num_nodes`, this process is one of several processes of `models.training.distributed`: `training.devices` on
    each of `num_nodes` machines.

    Raises:
        UserError: the options do not fit the network or the machine, the data is damaged, the loss is not finite, or
            memory runs out.
        KeyboardInterrupt: Ctrl-C or SIGTERM. The state after the last finished step is saved.

    """
    _quieten()
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_unfinished(checkpoints)
    start = find_resume_point(checkpoints)
    assert "auto" not in (job.training.precision, job.training.channels_last)
    seed_everything(job.training.seed, verbose=False)
    classifier = build_classifier(job)
    if start is None and (checkpoints / START).is_file():
        classifier.load_state_dict(torch.load(checkpoints / START, weights_only=True)["state_dict"])
    _arrange(classifier.network, job.training)
    interruption = Interruption()
    keeper = Checkpoints(
        checkpoints,
        interruption,
        every_minutes=job.training.checkpoint_minutes,
        max_hours=job.training.max_hours,
    )
    trainer = _trainer(job, loggers, [keeper, *_watchers(job.recipe), *callbacks], num_nodes)
    if start and trainer.is_global_zero:
        _log.info("train: goes on after step %d", start.step)
    data = ImageDataModule(
        job.prepared,
        job.manifest,
        batch_size=job.recipe.batch_size,
        seed=job.training.seed,
        resident=job.training.resident,
        class_weights=job.weights_of("sampling"),
    )
    with interruption.listen(), _explained(job):
        trainer.fit(classifier, datamodule=data, ckpt_path=start.checkpoint if start else None, weights_only=True)
    return Trained(checkpoints / BEST, start.step if start else None)


@contextmanager
def _explained(job: TrainingJob) -> Iterator[None]:
    """Convert the exceptions that end a training."""
    try:
        yield
    except Stopped as stopped:
        _log.warning("train: stopped after step %d, which is kept: the same command goes on from there", stopped.step)
        raise KeyboardInterrupt from None
    except SystemExit:  # Lightning's exception for Ctrl-C
        raise KeyboardInterrupt from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        batch_size = job.recipe.batch_size
        raise UserError(
            f"memory ran out with training.batch_size={batch_size} at {job.input_size} px: set "
            f"training.batch_size={max(2, batch_size // 2)}, or a smaller model.input_size; what was trained is kept",
            exit_code=1,
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out, on a GPU or a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def build_classifier(job: TrainingJob) -> ImageClassifier:
    """Build the network of a job, with augmentation and recipe, in the state before the first step."""
    network = build_network(job.model, len(job.manifest.classes), job.input_size)
    normalization = start_from_weights(network, job.model)
    return _classifier(job, network, normalization or job.manifest.color.normalization)


def _classifier(job: TrainingJob, network: nn.Module, normalization: Normalization) -> ImageClassifier:
    manifest = job.manifest
    flip = manifest.mirror_keeps_label if job.augmentation.flip == "auto" else job.augmentation.flip
    augmentation = Augmentation(
        job.augmentation,
        manifest.color,
        crop=job.input_size,
        flip=flip,
        seed=job.training.seed,
        num_classes=len(manifest.classes),
        normalization=normalization,
    )
    return ImageClassifier(network, augmentation, job.recipe, job.weights_of("weights"))


def _arrange(network: nn.Module, config: TrainingConfig) -> None:
    """Apply channels-last and torch.compile; state_dict keys do not change."""
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    if config.compile != "none":
        network.compile(mode=config.compile)


def load_classifier(job: TrainingJob, checkpoint: Path) -> ImageClassifier:
    """Build the network of a job with the weights of a checkpoint, for evaluation on the CPU.

    Raises:
        UserError: the checkpoint is missing or damaged.

    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        normalization = Normalization.model_validate(state[NORMALIZATION])
    except UNREADABLE as error:
        raise UserError(
            f"{checkpoint} is missing or damaged: remove {checkpoint.parent}, and `convoy run` trains anew", exit_code=1
        ) from error
    # The initial weights may be gone by now. The checkpoint holds their normalization.
    network = build_network(job.model, len(job.manifest.classes), job.input_size)
    classifier = _classifier(job, network, normalization)
    classifier.load_state_dict(state["state_dict"])
    return classifier.to(memory_format=torch.channels_last).eval()


def _watchers(recipe: Recipe) -> Iterator[Callback]:
    """Yield the recipe's callbacks: averaged weights, which are validated and saved, and early stopping."""
    if recipe.ema:
        yield EMAWeightAveraging(decay=recipe.ema)
    if recipe.patience:
        yield EarlyStopping("val/accuracy", mode="max", patience=recipe.patience)


def _trainer(
    job: TrainingJob, loggers: Sequence[Logger], callbacks: Sequence[Callback], num_nodes: int | None
) -> Trainer:
    config = job.training
    check_devices(config)
    progress = Bar() if shows_progress() and num_nodes is None else EpochLines()
    return Trainer(
        accelerator=config.accelerator,
        strategy="auto" if num_nodes is None else "ddp",
        devices=1 if num_nodes is None else config.devices,
        num_nodes=num_nodes or 1,
        # Only between GPUs. torch has none for CPUs, where each process uses the statistics of its own images.
        sync_batchnorm=num_nodes is not None and training_device(config).type == "cuda",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=job.recipe.max_epochs,
        log_every_n_steps=config.log_every_n_steps,
        logger=list(loggers) or False,
        callbacks=[*callbacks, progress],
        plugins=[WholeFileIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _quieten() -> None:
    """Silence Lightning's advice on hardware and subscriptions."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Our batches come from memory-mapped shards. Workers would only copy them once more.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # Logged metrics are sums over all processes already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated.*")
