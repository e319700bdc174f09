"""The steps of a model's life, each on one MLflow run: train, evaluate, export, judge."""

import logging
import shutil
from pathlib import Path

import numpy as np
from pytorch_lightning.loggers.logger import Logger

from data.shards import PreparedImages
from models import figures
from models.classifier import ImageClassifier
from models.complexity import measure
from models.evaluate import Predictions, crop_center, predict
from models.export import ServedNetwork, TorchPredictor, export_onnx, make_golden, preprocessing_of
from models.job import BEST, TrainingJob
from models.manifest import Golden, ModelManifest
from models.predictor import OnnxPredictor, file_sha256
from models.preview import preview_augmentation
from models.registry import normalize_file, write_manifest
from models.tracking import PARITY_METRIC, TRAINED, RunLog, Tracking, TrainedRun
from models.train import build_classifier, finished_epochs, load_classifier, train

NUM_WORST_ERRORS = 24
NUM_PARITY_IMAGES = 512

_log = logging.getLogger("convoy")


def train_run(tracking: Tracking, job: TrainingJob, checkpoints: Path, git_commit: str | None) -> str:
    """Train a job on a run of its own, or on the run that an interrupted attempt has left; returns the run id."""
    run_id = _interrupted_run(tracking, checkpoints)
    if run_id is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    epochs = finished_epochs(checkpoints)
    if run_id:
        _log.info("train: resuming run %s after %s finished epochs", run_id[:8], epochs or "no")
    # Options that do not fit the network are found here, before they leave a run behind.
    untrained = None if epochs else build_classifier(job)
    with tracking.open_run(run_id, f"{job.model.network} on {job.manifest.source}", git_commit) as log:
        note = _run_note(checkpoints)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(log.run_id, encoding="utf-8")
        if untrained:
            _describe(job, untrained, log)
        train(job, checkpoints, [RunLogger(log)])
        log.figure(figures.learning_curves(_history_by_epoch(log)), "learning-curves")
        log.tag({TRAINED: "true"})
    return log.run_id


def _interrupted_run(tracking: Tracking, checkpoints: Path) -> str | None:
    note = _run_note(checkpoints)
    if not note.is_file():
        return None
    run_id = note.read_text(encoding="utf-8")
    return run_id if tracking.is_resumable(run_id) else None


def _run_note(checkpoints: Path) -> Path:
    """Where the id of the run that the checkpoints belong to is kept."""
    return checkpoints.with_suffix(".run")


def _describe(job: TrainingJob, classifier: ImageClassifier, log: RunLog) -> None:
    complexity = measure(classifier.network, job.input_size)
    facts = {"num_parameters": complexity.num_parameters, "multiply_adds": complexity.multiply_adds}
    log.start(job, facts)
    log.figure(preview_augmentation(job, classifier), "augmentation")


class RunLogger(Logger):
    """Hands Lightning's metrics to the run, which stays open after the training: evaluation belongs to it too."""

    def __init__(self, log: RunLog) -> None:
        """Write to `log`."""
        super().__init__()
        self._log = log

    @property
    def name(self) -> str:
        """Lightning asks."""
        return "mlflow"

    @property
    def version(self) -> str:
        """The run's id."""
        return self._log.run_id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One request for all metrics of a step."""
        self._log.metrics(metrics, step or 0)

    def log_hyperparams(self, params: object, *_: object, **__: object) -> None:
        """The job's parameters are on the run already."""


def _history_by_epoch(log: RunLog) -> dict[str, list[tuple[int, float]]]:
    """Metrics of whole epochs against the number of the epoch."""
    history = log.history(["epoch", "train/loss", "val/loss", "train/accuracy", "val/accuracy"])
    epoch_of = {step: int(epoch) + 1 for step, epoch in history.pop("epoch")}
    return {name: [(epoch_of[step], value) for step, value in points] for name, points in history.items()}


def evaluate_run(tracking: Tracking, job: TrainingJob, run_id: str, checkpoints: Path) -> None:
    """Measure the best epoch on the test images; figures and pictures go to the run."""
    log, manifest = tracking.log(run_id), job.manifest
    images = PreparedImages(job.prepared, manifest, "test")
    network = ServedNetwork(load_classifier(job, checkpoints / BEST))
    predictions = predict(TorchPredictor(network), images, manifest.classes, job.input_size)
    evaluation = predictions.summarize()
    log.record(evaluation.model_dump(), "evaluation")
    log.figure(figures.confusion_matrix(predictions.confusion(), manifest.classes), "confusion-matrix")
    _log_worst_errors(log, predictions, images)
    log.metrics(evaluation.metrics)


def _log_worst_errors(log: RunLog, predictions: Predictions, images: PreparedImages) -> None:
    worst = predictions.worst_errors(NUM_WORST_ERRORS)
    if not len(worst):
        return
    probabilities = predictions.probabilities[worst]
    picture = figures.worst_errors(
        images.gather(worst),
        predictions.labels[worst],
        probabilities.argmax(axis=1),
        probabilities.max(axis=1),
        predictions.classes,
    )
    log.figure(picture, "worst-errors")


def export_run(tracking: Tracking, job: TrainingJob, run_id: str, checkpoints: Path, folder: Path, name: str) -> None:
    """Export the best epoch to `folder` with its manifest; how far ONNX is from torch goes to the run."""
    network = ServedNetwork(load_classifier(job, checkpoints / BEST))
    path = export_onnx(network, job.input_size, folder)
    normalize_file(path)
    images, classes = PreparedImages(job.prepared, job.manifest, "test"), job.manifest.classes
    expected = predict(TorchPredictor(network), images, classes, job.input_size, limit=NUM_PARITY_IMAGES).probabilities
    surest = int(expected.max(axis=1).argmax())
    golden = make_golden(crop_center(images.gather(np.array([surest])), job.input_size)[0], expected[surest])
    write_manifest(folder, _model_manifest(job, tracking.get(run_id), path, golden, name))
    exported = predict(OnnxPredictor(folder), images, classes, job.input_size, limit=NUM_PARITY_IMAGES).probabilities
    tracking.log(run_id).metrics({PARITY_METRIC: float(np.abs(exported - expected).max())})


def _model_manifest(job: TrainingJob, run: TrainedRun, onnx_file: Path, golden: Golden, name: str) -> ModelManifest:
    preprocessing = preprocessing_of(job.manifest, job.input_size)
    return ModelManifest(
        name=name,
        version=None,
        network=job.model.network,
        classes=job.manifest.classes,
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id=run.run_id,
        data_version=job.data_version,
        git_commit=run.git_commit,
        metrics={key: value for key, value in run.metrics.items() if key.startswith("test/")},
        onnx_sha256=file_sha256(onnx_file),
        golden=golden,
    )
