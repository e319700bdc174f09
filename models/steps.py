"""The steps of a model's life, each on one MLflow run: train, evaluate, export, judge."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from core.files import file_sha256, whole_file
from data.batches.shards import PreparedImages, center_crop
from data.images.decode import Preprocessing
from data.quality.findings import read_quality
from data.quality.page import quality_page
from models.config import METRICS, GateConfig
from models.exported.export import (
    ServedNetwork,
    TorchPredictor,
    export_onnx,
    export_program,
    make_golden,
    preprocessing_of,
    require_exportable,
)
from models.exported.manifest import Golden, ModelManifest
from models.exported.predictor import OnnxPredictor
from models.exported.quantize import Calibrated, metrics_of, try_int8
from models.judging.calibration import calibrate, fit_temperature, reliability_of
from models.judging.certainty import certainty_of, predict_validation
from models.judging.evaluate import TEN_CROP_METRIC, Predictions, predict, ten_crop_accuracy
from models.judging.metrics import evaluate
from models.networks.cost import measure
from models.tracking import figures
from models.tracking.journal import Journal
from models.tracking.logger import RunLogger
from models.tracking.machine_use import system_metrics
from models.tracking.registry import normalize_file, write_manifest
from models.tracking.runs import (
    INT8,
    MEASURED,
    PARENT,
    PARITY_METRIC,
    TRAINED,
    RunLog,
    Tracking,
    TrainedRun,
)
from models.tracking.sender import Sender
from models.training.checkpoints import link
from models.training.classifier import ImageClassifier
from models.training.distributed import Assignment, train_on_devices
from models.training.execution import check_devices, settle
from models.training.job import BEST, LAST, START, TrainingJob
from models.training.optimizers import make_optimizer
from models.training.preview import preview_augmentation
from models.training.probe import train_probe
from models.training.recipes import FINETUNE, PROBE
from models.training.train import build_classifier, load_classifier, train
from models.training.unfinished import interrupted_run, journal_file, run_note

NUM_WORST_ERRORS = 24
NUM_PARITY_IMAGES = 512
TEMPERATURE, CALIBRATION_ERROR = "val/temperature", "test/calibration_error"

_log = logging.getLogger("convoy")


def train_run(
    tracking: Tracking,
    job: TrainingJob,
    checkpoints: Path,
    git_commit: str | None,
    data_params: Mapping[str, object] = MappingProxyType({}),
    features: Path | None = None,
) -> str:
    """Train a job on a run of its own, or on the run that an interrupted attempt has left; returns the run id.

    `data_params` are what the data was prepared with, for the run's parameters. Features of images are kept in the
    folder `features` from one training to the next; None: beside `checkpoints`.
    """
    run_id = interrupted_run(tracking, checkpoints)
    if run_id is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
        journal_file(checkpoints).unlink(missing_ok=True)
    is_begun = any((checkpoints / name).is_file() for name in (LAST, BEST))
    # Options that fit neither network nor machine are found here, before they leave a run behind.
    check_devices(job.training)
    _tell_balance(job)
    untrained = None if is_begun else build_classifier(job)
    if untrained and job.model.is_added:
        require_exportable(untrained, job.input_size, job.model.network)
    settled = settle(job)
    features = features or checkpoints.parent / "features"
    with tracking.open_run(run_id, run_name(job), git_commit) as log:
        note = run_note(checkpoints)
        note.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as temporary:
            temporary.write_text(log.run_id, encoding="utf-8")
        if untrained:
            _describe(job, settled, untrained, log, data_params)
        has_left = False
        if job.training.recipe == PROBE:
            log.metrics(train_probe(job, untrained or build_classifier(job), checkpoints / BEST, features))
        else:
            if untrained and job.training.recipe == FINETUNE:
                _start_from_probe(tracking, job, checkpoints, log, features)
            has_left = _train(settled, checkpoints, log)
            log.figure(figures.learning_curves(_history_by_epoch(log)), "learning-curves")
        log.tag({TRAINED: "true"})
    if not has_left:
        journal_file(checkpoints).unlink(missing_ok=True)
    return log.run_id


def _tell_balance(job: TrainingJob) -> None:
    """Say which class balance `auto` has chosen, and by which counts."""
    if job.training.class_balance == "auto":
        counts = sorted((count, name) for name, count in job.manifest.splits["train"].items())
        (fewest, rare), (most, common) = counts[0], counts[-1]
        sizes = f"class {common!r} has {most:,} training images, class {rare!r} {fewest:,}"
        _log.info("train: training.class_balance auto is %s: %s", job.class_balance, sizes)


def _start_from_probe(tracking: Tracking, job: TrainingJob, checkpoints: Path, log: RunLog, features: Path) -> None:
    """Let fine-tuning start from the probe of the same data and network; MLflow shows its run below the probe's."""
    probe = job.probe
    if found := tracking.find_trained(probe.key):
        log.tag({PARENT: found.run_id})
    trained = checkpoints.parent / probe.key / BEST
    if not trained.is_file():
        train_probe(probe, build_classifier(probe), trained, features)
    checkpoints.mkdir(parents=True, exist_ok=True)
    link(trained, checkpoints / START)


def _train(job: TrainingJob, checkpoints: Path, log: RunLog) -> bool:
    """Train here or in processes of their own; the metrics take their way over the disk.

    Gives whether some of them still wait there.
    """
    journal = Journal(journal_file(checkpoints), log.last_steps())
    if job.training.num_processes == 1:
        with Sender(journal, log, system_metrics()) as sender:
            train(job, checkpoints, [RunLogger(log.run_id, journal)])
    else:
        with Sender(journal, log) as sender:
            train_on_devices(Assignment(job, checkpoints, journal.path))
    return sender.has_left


def run_name(job: TrainingJob, accuracy: float | None = None) -> str:
    """Name what was trained, from which weights and on which data, and how well it did on the test images."""
    start = f" from {Path(job.model.weights).stem}" if job.model.weights else ""
    recipe = f", {job.training.recipe}" if job.training.recipe in (PROBE, FINETUNE) else ""
    result = "" if accuracy is None else f", {100 * accuracy:.1f} %"
    return f"{job.model.network}{start}{recipe}, {job.manifest.source} {job.data_version[:8]}{result}"


def _describe(
    job: TrainingJob,
    settled: TrainingJob,
    classifier: ImageClassifier,
    log: RunLog,
    data_params: Mapping[str, object],
) -> None:
    complexity = measure(classifier.network, job.input_size)
    optimizer = make_optimizer(job.recipe, classifier.network, job.recipe.batch_size)
    facts = {f"data.{name}": value for name, value in data_params.items()} | {
        "num_parameters": complexity.num_parameters,
        "multiply_adds": complexity.multiply_adds,
        "execution.precision": settled.training.precision,
        "execution.channels_last": settled.training.channels_last,
        "execution.class_balance": job.class_balance,
        # The peak of the schedule: training.learning_rate is the one for a batch of 128.
        "execution.learning_rate": optimizer.param_groups[0]["lr"],
    }
    log.start(job, facts)
    log.figure(preview_augmentation(job, classifier), "augmentation")
    log.record(read_quality(job.prepared).model_dump(mode="json"), "data-quality")
    log.page(quality_page(job.prepared), "data-quality")


def _history_by_epoch(log: RunLog) -> dict[str, list[tuple[int, float]]]:
    """Metrics of whole epochs against the number of the epoch."""
    history = log.history(["epoch", "train/loss", "val/loss", "train/accuracy", "val/accuracy"])
    epoch_of = {step: int(epoch) + 1 for step, epoch in history.pop("epoch")}
    return {name: [(epoch_of[step], value) for step, value in points] for name, points in history.items()}


def evaluate_run(
    tracking: Tracking, job: TrainingJob, run_id: str, checkpoints: Path, metrics: Sequence[str] = ()
) -> None:
    """Measure the best epoch on the test images; figures, with those of `metrics`, and pictures go to the run."""
    log, manifest = tracking.log(run_id), job.manifest
    images = PreparedImages(job.prepared, manifest, "test")
    classifier = load_classifier(job, checkpoints / BEST)
    model = TorchPredictor(ServedNetwork(classifier))
    uncalibrated = predict(model, images, manifest.classes, job.input_size)
    temperature = fit_temperature(predict_validation(model, job))
    predictions = calibrate(uncalibrated, temperature)
    evaluation = evaluate(predictions, metrics)
    log.record(evaluation.model_dump(), "evaluation")
    log.figure(figures.confusion_matrix(predictions.confusion(), manifest.classes), "confusion-matrix")
    _log_worst_errors(log, predictions, images)
    found = evaluation.metrics | {TEMPERATURE: temperature} | _log_reliability(log, uncalibrated, predictions)
    if job.input_size < manifest.size:
        # Ten forward passes over the test images, for a figure to hold against the paper's: no endpoint does this.
        mirror = classifier.augmentation.flip
        found[TEN_CROP_METRIC] = ten_crop_accuracy(model, images, job.input_size, mirror=mirror)
    log.metrics(found)
    log.renew({f"test/{name}": value for name, value in evaluation.figures.items()})
    log.tag({MEASURED: METRICS.state(metrics)})
    log.rename(run_name(job, found["test/accuracy"]))


def _log_reliability(log: RunLog, before: Predictions, after: Predictions) -> dict[str, float]:
    """Draw how far confidences are from accuracies; gives the errors as metrics."""
    found = {name: reliability_of(each) for name, each in (("uncalibrated", before), ("calibrated", after))}
    curves = {name: (one.confidence.tolist(), one.accuracy.tolist(), one.error) for name, one in found.items()}
    log.figure(figures.reliability_diagram(curves), "reliability")
    errors = {name: one.error for name, one in found.items()}
    _log.info("calibration: expected error %.4f, %.4f before", errors["calibrated"], errors["uncalibrated"])
    return {CALIBRATION_ERROR: errors["calibrated"], f"{CALIBRATION_ERROR}_before": errors["uncalibrated"]}


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


def export_run(
    tracking: Tracking, job: TrainingJob, run_id: str, checkpoints: Path, folder: Path, name: str, gate: GateConfig
) -> None:
    """Export the best epoch to `folder` with its manifest, and in int8 where that pays.

    How far ONNX is from torch goes to the run, and so do the figures of int8.
    """
    run = tracking.get(run_id)
    network = ServedNetwork(load_classifier(job, checkpoints / BEST), run.metrics.get(TEMPERATURE, 1.0))
    preprocessing = preprocessing_of(job.manifest, job.input_size, network.normalize.spec)
    path = export_onnx(network, job.input_size, folder)
    normalize_file(path)
    program = export_program(network, job.input_size, folder)
    images, classes = PreparedImages(job.prepared, job.manifest, "test"), job.manifest.classes
    expected = predict(TorchPredictor(network), images, classes, job.input_size, limit=NUM_PARITY_IMAGES).probabilities
    surest = int(expected.max(axis=1).argmax())
    golden_image = center_crop(images.gather(np.array([surest])), job.input_size)[0]
    golden = make_golden(golden_image, expected[surest])
    manifest = _model_manifest(job, run, preprocessing, (path, program), golden, name)
    tried = try_int8(folder, Calibrated(job.prepared, job.input_size), golden_image, gate.max_int8_accuracy_drop)
    certainty = certainty_of(network, job, gate)
    chosen = {"int8": tried, "temperature": network.temperature, "certainty": certainty}
    write_manifest(folder, manifest.model_copy(update=chosen))
    exported = predict(OnnxPredictor(folder), images, classes, job.input_size, limit=NUM_PARITY_IMAGES).probabilities
    log = tracking.log(run_id)
    log.metrics({PARITY_METRIC: float(np.abs(exported - expected).max())} | metrics_of(tried))
    log.tag({INT8: f"refused: {tried.refusal}" if tried.refusal else "accepted"})


def _model_manifest(
    job: TrainingJob,
    run: TrainedRun,
    preprocessing: Preprocessing,
    files: tuple[Path, Path],
    golden: Golden,
    name: str,
) -> ModelManifest:
    onnx_file, program = files
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
        program_sha256=file_sha256(program),
        golden=golden,
    )
