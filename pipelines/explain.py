"""`convoy explain`: which steps the next run would execute, and why. Nothing runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from data.changes import WHOLE_INPUTS, changed_counts
from models.training.job import BEST, TrainingJob
from pipelines.config import Config
from pipelines.known import Known, Training, known_models, why_evaluate
from pipelines.settings import Settings
from pipelines.workspace import CHECKPOINTS, MODELS, RAW, ROOT, packed_model, training_job
from serving.packaging.bento import Bento, find_bento
from serving.packaging.verify import verified_answer

Answer = Literal["runs", "may run", "skipped"]

AFTER = ("evaluate", "register", "gate", "package", "verify")
UNKNOWN = "it runs where the data comes out different"
FOLLOWS = "it follows from the steps before"


@dataclass(frozen=True)
class Step:
    """Forecast for one step of the next run."""

    name: str
    answer: Answer
    reason: str


def explain(config: Config) -> list[Step]:
    """Say for each step whether the next run would execute it.

    Raises:
        UserError: the images cannot be used.

    """
    from data.versioning import explain as explain_data

    version, reasons = explain_data(ROOT, config.data)
    steps = list(_data(config, reasons))
    if version is None:
        return [*steps, *_waiting("train", *AFTER)]
    if any(step.answer != "skipped" for step in steps):
        return [*steps, Step("train", "may run", UNKNOWN), *(Step(name, "may run", FOLLOWS) for name in AFTER)]
    known = known_models(config)
    jobs = [training_job(stage, version) for stage in config.stages]
    # Trainings before the last finished training are not repeated.
    ended = [index for index, job in enumerate(jobs) if job.key in known.trained]
    for job in jobs[max(ended, default=0) :]:
        steps += _training(job, known, config.evaluation.metrics)
    runs = any(step.answer == "runs" for step in steps)
    return [*steps, *(_waiting("package", "verify") if runs else _packaging(config, known))]


def _data(config: Config, reasons: dict[str, list[str]]) -> Iterator[Step]:
    words = list(reasons["ingest"])
    source = f"{WHOLE_INPUTS['fingerprint']} has changed"
    if source in words and (counts := changed_counts(config.data, RAW)):
        words[words.index(source)] += f" ({counts})"
    yield _step("ingest", words, "source, parameters and code are unchanged")
    if words and not reasons["prepare"]:
        yield Step("prepare", "may run", "it runs where data/raw comes out different")
    else:
        yield _step("prepare", reasons["prepare"], "its inputs, parameters and code are unchanged")


def _training(job: TrainingJob, known: Known, metrics: Sequence[str]) -> Iterator[Step]:
    done, has_weights = known.trained.get(job.key), (CHECKPOINTS / job.key / BEST).is_file()
    version = known.versions.get(done.run_id) if done else None
    if done is None or not (version or has_weights):
        yield Step("train", "runs", _why_train(job, done, known.latest))
        yield from _waiting("evaluate", "register", "gate")
        return
    run = f"run {done.run_id[:8]}"
    yield Step("train", "skipped", f"same data {job.data_version[:8]}, parameters and code as {run}")
    why = why_evaluate(done.is_measured, done.figures, metrics, has_weights)
    yield _step("evaluate", [f"{run} {why}"] if why else [], f"{run} has been measured")
    yield _step("register", [] if version else [f"{run} has no version"], f"{run} is version {version}")
    if version:
        is_champion = version == known.champion
        champion = f"version {known.champion} is the champion" if known.champion else "there is no champion"
        yield _step("gate", [] if is_champion else [f"{champion}, not version {version}"], champion)
    else:
        yield from _waiting("gate")


def _why_train(job: TrainingJob, done: Training | None, last: Training | None) -> str:
    if done:
        return f"run {done.run_id[:8]} was not registered, and its weights are not here"
    if last is None:
        return "nothing has been trained yet"
    changes = job.changes_since(last.data_version, last.params or {}, last.code)
    return f"{'; '.join(changes) or 'Convoy has new parameters'} since run {last.run_id[:8]}"


def _packaging(config: Config, known: Known) -> Iterator[Step]:
    bento = _bento(config, known)
    if bento is None:
        yield Step(
            "package", "runs", f"version {known.champion} is not packed for {config.serving.target_name} as it is now"
        )
        yield from _waiting("verify")
        return
    yield Step("package", "skipped", f"{bento.tag} holds version {known.champion}")
    answered = verified_answer(bento) is not None
    yield _step("verify", [] if answered else [f"{bento.tag} has not answered yet"], f"{bento.tag} has answered")


def _bento(config: Config, known: Known) -> Bento | None:
    """Return the Bento that packaging would build, or None if it does not exist."""
    store, name = Settings().bento_store(ROOT), config.registry.model_name
    run_id = next((run_id for run_id, version in known.versions.items() if version == known.champion), "")
    folder = MODELS / f"{name}-{known.champion}-{run_id[:8]}"
    if not folder.is_dir():
        return find_bento(store, name, known.champion or "", config.serving.target_name)
    return packed_model(config, folder)


def _waiting(*names: str) -> Iterator[Step]:
    for name in names:
        yield Step(name, "runs", FOLLOWS)


def _step(name: str, reasons: list[str], unchanged: str) -> Step:
    return Step(name, "runs", ", ".join(reasons)) if reasons else Step(name, "skipped", unchanged)
