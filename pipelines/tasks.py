"""Tasks of the flows. Each task is one call into data/, models/ or serving/, made only if something has changed.

Slow libraries are imported where they are used, because a run that skips every step needs none of them.
"""

import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from core.errors import UserError
from core.extensions import short_name
from models.tracking.registry import CHAMPION, ModelVersion, Registry
from models.tracking.runs import CODE, MEASURED, VERDICT, TrainedRun
from models.training.job import BEST, TrainingJob
from models.training.unfinished import interrupted_run, settle_runs
from pipelines.config import Config
from pipelines.judgement import judge
from pipelines.known import why_evaluate
from pipelines.promotions import gate_refused, person_refused, promoting, record_verdict
from pipelines.provenance import note_source, require_known_source
from pipelines.settings import Settings
from pipelines.workspace import (
    CHECKPOINTS,
    EXPORTED,
    FEATURES,
    PREPARED,
    RAW,
    ROOT,
    git_commit,
    open_registry,
    open_tracking,
    pack_champion,
    training_job,
)
from serving.packaging.bento import Bento, list_bentos, read_packing
from serving.packaging.image import Image
from serving.rollout.ledger import Entry

if TYPE_CHECKING:
    from models.judging.gate import Verdict

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("convoy")


def step(name: str, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task from a function.

    The functions below decide by data versions, keys and ids whether to skip. Prefect's cache would add a second
    decision, and Prefect's stored results a second owner of the results in DVC, MLflow and BentoML.
    """
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, **options)


@step(name="check-source")
def check_source(config: Config, images: Literal["configured", "prepared"]) -> None:
    """Refuse images from another source than the champion's, unless the configuration allows it.

    Also builds the configured transforms of torchvision, to find errors before anything runs.
    """
    require_known_source(config, images)
    if config.augmentation.extra:
        from data.augmentation.extra import make_transforms

        make_transforms(config.augmentation.extra, config.model.input_size or config.data.size)


@step(name="reproduce-data")
def reproduce_data(config: Config, target: str = "prepare", *, then_train: bool = False) -> str:
    """Bring the data up to date with DVC. Returns the data version.

    With `then_train`, this process imports the training's libraries while other processes prepare the data.
    """
    from data.versioning import data_version, reproduce

    for outcome in reproduce(ROOT, config.data, target, _import_training if then_train else None):
        _tell(outcome.stage, ran=outcome.ran, reason=outcome.reason)
    return data_version(ROOT) or "none"


def _import_training() -> None:
    """Import Lightning in a thread, which takes 12 s. No daemon thread: an exit during the import might crash."""
    Thread(target=import_module, args=("models.steps",), name="imports").start()


@step(name="push-data", retries=2, retry_delay_seconds=5)
def push_data() -> None:
    """Copy new data to the DVC remote."""
    from data.versioning import push

    num_files = push(ROOT)
    _tell(
        "push",
        ran=num_files > 0,
        reason=f"{num_files} files were new to the DVC remote" if num_files else "the DVC remote has it",
    )


@step(name="report-data")
def report_data(data_version: str) -> None:
    """Report on the data in Prefect and in the log."""
    from data.quality.report import as_markdown, data_report

    report = data_report(PREPARED)
    create_markdown_artifact(as_markdown(report), key="data-report", description=f"data version {data_version}")
    splits = ", ".join(f"{name} {count:,}" for name, count in report["splits"].items())
    images = f"{report['num_images']:,} images in {len(report['classes'])} classes ({splits})"
    _log.info("data: version %s, %s, %d rejected", data_version[:8], images, report["num_rejected"])
    for warning in report["warnings"]:
        _log.warning("data: %s", warning)


@step(name="train")
def train(config: Config, data_version: str) -> str:
    """Train, unless the same job has been trained. Returns the run's id."""
    tracking, job = open_tracking(config), training_job(config, data_version)
    settle_runs(tracking, CHECKPOINTS)
    checkpoints, done = CHECKPOINTS / job.key, tracking.find_trained(job.key)
    if done and ((checkpoints / BEST).is_file() or open_registry(config).by_run(done.run_id)):
        _tell("train", ran=False, reason=f"same data {data_version[:8]}, parameters and code as run {done.run_id[:8]}")
        note_source(tracking, done.run_id)
        return done.run_id
    if interrupted := interrupted_run(tracking, checkpoints):
        _log.info("train: resuming run %s, which was interrupted", interrupted[:8])
    else:
        _log.info("train: running, %s", _why_train(job, done, tracking.latest_trained()))
    from models.steps import train_run

    run_id = train_run(tracking, job, checkpoints, git_commit(), config.data.model_dump(mode="json"), FEATURES)
    note_source(tracking, run_id)
    return run_id


def _why_train(job: TrainingJob, done: TrainedRun | None, last: TrainedRun | None) -> str:
    if done:
        return f"run {done.run_id[:8]} was not registered, and its weights are not here"
    if last is None:
        return "nothing has been trained yet"
    changes = job.changes_since(last.data_version, last.params, last.tags.get(CODE, ""))
    return f"{'; '.join(changes) or 'Convoy has new parameters'} since run {last.run_id[:8]}"


@step(name="evaluate")
def evaluate(config: Config, data_version: str, run_id: str) -> None:
    """Measure on the test images, unless the run has been measured."""
    tracking, job = open_tracking(config), training_job(config, data_version)
    checkpoints, metrics = CHECKPOINTS / job.key, config.evaluation.metrics
    run, has_weights = tracking.get(run_id), (checkpoints / BEST).is_file()
    if why := why_evaluate("test/accuracy" in run.metrics, run.tags.get(MEASURED, ""), metrics, has_weights):
        from models.steps import evaluate_run

        evaluate_run(tracking, job, run_id, checkpoints, metrics)
        _tell("evaluate", ran=True, reason=f"this run {why}")
    else:
        _tell("evaluate", ran=False, reason=f"run {run_id[:8]} has been measured")
    _summarize(tracking.get(run_id), metrics)


def _summarize(run: TrainedRun, figures: Sequence[str]) -> None:
    more = [f"test/{short_name(name)}" for name in figures]
    tests = ("test/accuracy", "test/ten_crop_accuracy", "test/top5_accuracy", "test/worst_class_accuracy")
    shown = ("val/accuracy", *tests, *more, "num_parameters")
    values = run.params | {name: f"{value:.4f}" for name, value in run.metrics.items()}
    rows = [f"| {name} | {values[name]} |" for name in shown if name in values]
    page = "\n".join([f"run {run.run_id}", "", "| | |", "|---|---|", *rows])
    create_markdown_artifact(page, key="training-summary", description=f"data version {run.data_version}")
    _log.info("test accuracy %s, worst class %s", values["test/accuracy"], values["test/worst_class_accuracy"])


@step(name="register")
def register(config: Config, data_version: str, run_id: str) -> str:
    """Export the trained model and register it as challenger, unless the run has a version. Returns the version."""
    registry = open_registry(config)
    if known := registry.by_run(run_id):
        _tell("register", ran=False, reason=f"run {run_id[:8]} is {known}")
        return known.version
    from models.steps import export_run

    tracking, job = open_tracking(config), training_job(config, data_version)
    checkpoints, exported = CHECKPOINTS / job.key, EXPORTED / job.key
    export_run(tracking, job, run_id, checkpoints, exported, registry.name, config.gate)
    challenger = registry.register(exported)
    _tell("register", ran=True, reason=f"{challenger} is the challenger")
    return challenger.version


@step(name="gate")
def gate(config: Config, version: str, *, may_fail: bool = False) -> None:
    """Judge a version by the gate, and make it champion if it passes, unless it is champion already.

    Raises:
        UserError: the version fails, or a person has to decide. The champion stays. `may_fail` only logs this.

    """
    registry = open_registry(config)
    challenger, champion = registry.get(version), registry.by_alias(CHAMPION)
    if champion and champion.version == version:
        _tell("gate", ran=False, reason=f"{champion} is the champion")
        return
    refusal = person_refused(config, challenger, champion)
    if refusal is None:
        verdict = _judge(config, registry, challenger, champion)
        if verdict.outcome == "passed":
            with promoting():
                registry.promote(challenger)
            _log.info("gate: passed, %s is the champion", challenger)
        record_verdict(verdict, champion, challenger)
        if verdict.outcome == "passed":
            return
        refusal = gate_refused(verdict, challenger, champion)
    if not may_fail:
        raise UserError(refusal, exit_code=1)
    _log.warning("%s", refusal)


def _judge(config: Config, registry: Registry, challenger: ModelVersion, champion: ModelVersion | None) -> "Verdict":
    verdict = judge(config, registry, challenger, champion)
    rows = [f"| {' | '.join(row)} |" for row in verdict.rows]
    against = [f"against the champion: {verdict.comparison}"] if verdict.comparison else []
    page = "\n".join(["| gate | figure | |", "|---|---|---|", *rows, "", *against, *verdict.notes])
    create_markdown_artifact(page, key="gate-verdict", description=f"{challenger}")
    for _, words, outcome in verdict.rows:
        _log.info("gate: %s %s", outcome, words)
    for note in [*against, *verdict.notes]:
        _log.info("gate: %s", note)
    return verdict


@step(name="package")
def package(config: Config, version: str | None = None) -> Bento:
    """Package the champion, or a version, as a Bento, unless the Bento exists."""
    known = {bento.tag for bento in list_bentos(Settings().bento_store(ROOT))}
    bento = pack_champion(config, version)
    log = open_tracking(config).log(bento.run_id)
    log.record(read_packing(bento).model_dump(mode="json"), f"packing-{bento.target}")
    _tell("package", ran=bento.tag not in known, reason=f"{bento.tag} holds {bento.model_name} v{bento.model_version}")
    return bento


@step(name="containerize")
def containerize(config: Config, bento: Bento, platform: str | None = None) -> Image:
    """Build the container image of a Bento. Unchanged layers are reused."""
    from serving.packaging.image import build_image

    image = build_image(bento, platform)
    log = open_tracking(config).log(bento.run_id)
    log.record(image.model_dump(mode="json"), f"image-{bento.target}")
    _tell("containerize", ran=True, reason=f"{image.tag} has {image.size_bytes / 1e6:,.0f} MB")
    return image


@step(name="verify")
def verify(bento: Bento) -> dict[str, Any]:
    """Serve the Bento and check its answer to a test image, unless this has been done. Returns the answer."""
    from serving.packaging.verify import verified_answer, verify_bento

    if answer := verified_answer(bento):
        _tell("verify", ran=False, reason=f"{bento.tag} has answered as measured")
        return answer
    from data.batches.sample import first_test_image
    from models.exported.predictor import read_model_manifest

    crop = read_model_manifest(bento.path / "src" / "model").preprocessing.crop
    answer = verify_bento(bento, first_test_image(RAW, PREPARED, crop))
    _tell("verify", ran=True, reason=f"{bento.tag} was served and answered a test image as measured")
    return answer


@step(name="roll-out")
def roll_out(config: Config, image: Image, percent: float | None, why: str) -> Entry | None:
    """Deploy an image, unless it is live. Returns the ledger's entry."""
    from pipelines import releases
    from serving.rollout.containers import read_release

    release = read_release(image.tag, config.serving.target_name)
    run = open_tracking(config).get(release.run_id)
    figures = {name: value for name, value in run.metrics.items() if name.startswith("test/")}
    reason = why or f"asked for; the gate: {run.tags.get(VERDICT, 'not judged')}"
    entry = releases.roll_out(config, release, reason, figures, percent)
    _tell("deploy", ran=entry is not None, reason=f"{release} is live for {config.serving.target_name}")
    return entry


def _tell(name: str, *, ran: bool, reason: str) -> None:
    _log.info("%s: %s, %s", name, "done" if ran else "skipped", reason)
