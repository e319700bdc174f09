"""`convoy reproduce`: a run trained again from its commit, data and parameters, and held against what it was."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from data.config import AugmentationConfig
from data.versioning import data_version
from models.config import ModelConfig, TrainingConfig
from models.training.job import BEST, TrainingJob
from pipelines.config import Config
from pipelines.nearest import nearest
from pipelines.workspace import CHECKPOINTS, PREPARED, ROOT, open_tracking

if TYPE_CHECKING:
    from models.tracking.runs import TrainedRun

Curves = Mapping[str, list[tuple[int, float]]]
"""By the name of a metric, steps and values."""
Weights = Literal["equal", "different", "not here any more"]
Verdict = Literal["equal", "within tolerance", "different"]
CURVES = ("train/loss", "val/loss", "train/accuracy", "val/accuracy")
TOLERANCE = 0.01
"""Of a validation accuracy, up to which a training that is not bit-equal is called the same."""
MIN_LETTERS = 6
LOCK = "requirements.lock"

TRAIN = """
import json, sys
from pathlib import Path
from models.steps import train_run
from models.tracking.runs import Tracking
from models.training.job import TrainingJob
asked = json.load(sys.stdin)
job, folder = TrainingJob.from_json(asked["job"]), Path(asked["folder"])
tracking = Tracking(f"sqlite:///{folder}/mlflow.db", "reproduction", folder / "artifacts")
run_id = train_run(tracking, job, folder / "checkpoints", asked["commit"])
history = tracking.log(run_id).history(asked["curves"])
Path(folder, "result.json").write_text(json.dumps({"code": job.code, "history": history}), encoding="utf-8")
"""
"""What the code of the run's commit is asked to do."""


class Reproduction(BaseModel):
    """How a run that was trained again compares with the run that there was."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    verdict: Verdict
    first_difference: str
    """metric, step and both values where the two first part; empty: nowhere"""
    weights: Weights
    """those of the best epoch"""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        parted = f"; they part at {self.first_difference}" if self.first_difference else ""
        return f"run {self.run_id[:8]}: {self.verdict}, weights {self.weights}{parted}"


def reproduce_run(config: Config, name: str) -> Reproduction:
    """Train a run again, in a worktree of its commit, and compare.

    Raises:
        UserError: there is no such run, or what it was trained with is missing: the commit, the data, or a parameter.

    """
    run = _find(config, name)
    job = _job(run)
    missing = [*_missing_commit(run), *_missing_data(run)]
    if missing:
        raise UserError(f"run {run.run_id[:8]} cannot be reproduced: {'; '.join(missing)}", exit_code=1)
    assert run.git_commit
    with _worktree(run.git_commit) as code, tempfile.TemporaryDirectory(prefix="convoy-reproduce-") as folder:
        found = _train(job, run.git_commit, code, Path(folder))
        before = open_tracking(config).log(run.run_id).history(CURVES)
        weights = _compare_weights(CHECKPOINTS / job_key(run, job) / BEST, Path(folder) / "checkpoints" / BEST)
    after = {curve: [(int(step), float(value)) for step, value in points] for curve, points in found["history"].items()}
    return judge_curves(run.run_id, before, after, weights, [*_notes(run, found["code"])])


def _find(config: Config, name: str) -> "TrainedRun":
    runs = open_tracking(config).all_trained()
    found = [run for run in runs if run.run_id == name or (len(name) >= MIN_LETTERS and run.run_id.startswith(name))]
    if len(found) != 1:
        raise UserError(f"there is no finished run {name!r}{nearest(name, [run.run_id for run in runs])}")
    return found[0]


def _job(run: "TrainedRun") -> TrainingJob:
    """Read the parameters of a run back.

    Raises:
        UserError: one of them is not known to this version of Convoy.

    """
    sections: dict[str, dict[str, Any]] = {"model": {}, "augmentation": {}, "training": {}}
    for path, value in run.params.items():
        section, _, name = path.partition(".")
        if section in sections:
            sections[section][name] = _parse(value)
    try:
        model, training = (
            ModelConfig.model_validate(sections["model"]),
            TrainingConfig.model_validate(sections["training"]),
        )
        return TrainingJob(
            PREPARED.resolve(),
            run.data_version,
            model,
            AugmentationConfig.model_validate(sections["augmentation"]),
            training,
        )
    except ValueError as error:
        raise UserError(f"a parameter of run {run.run_id[:8]} is not known any more: {error}", exit_code=1) from None


def _parse(value: str) -> Any:
    """Read a value that was written by `str`."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def job_key(run: "TrainedRun", job: TrainingJob) -> str:
    """Name the folder of the checkpoints of a run."""
    return run.tags.get("convoy.key", job.key)


def _missing_commit(run: "TrainedRun") -> Iterator[str]:
    if run.git_commit is None:
        yield "it names no commit"
    elif _git("cat-file", "-e", f"{run.git_commit}^{{commit}}").returncode:
        yield f"its commit {run.git_commit[:8]} is not in this repository (git fetch may bring it)"


def _missing_data(run: "TrainedRun") -> Iterator[str]:
    here = data_version(ROOT)
    if here != run.data_version:
        commit = (run.git_commit or "COMMIT")[:8]
        yield (
            f"its data version {run.data_version[:8]} is not the one that is prepared ({(here or 'none')[:8]}): "
            f"`git checkout {commit} dvc.lock` and `dvc checkout` bring it back where DVC has it"
        )


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """Check the commit out into a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="convoy-worktree-") as parent:
        folder = Path(parent) / "tree"
        made = _git("worktree", "add", "--detach", str(folder), commit)
        if made.returncode:
            raise UserError(f"git worktree add failed: {' '.join(made.stderr.split())}", exit_code=1)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


def _train(job: TrainingJob, commit: str, code: Path, folder: Path) -> dict[str, Any]:
    """Train with the code of the worktree; in a project apart from the tool, with the tool as it is installed.

    Raises:
        UserError: that failed; its last line is told.

    """
    top = Path(_git("rev-parse", "--show-prefix").stdout.strip())
    tree = code / top
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    if (tree / "models" / "steps.py").is_file():
        environment["PYTHONPATH"] = str(tree)
    asked = {"job": job.as_json(), "folder": str(folder), "commit": commit, "curves": CURVES}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=tree,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the training failed in the worktree of commit {commit[:8]}: {last}", exit_code=1)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def _compare_weights(before: Path, after: Path) -> Weights:
    """Compare the weights of the best epoch, bit by bit."""
    if not before.is_file() or not after.is_file():
        return "not here any more"
    from models.judging.weights import same_weights

    return "equal" if same_weights(before, after) else "different"


def judge_curves(run_id: str, before: Curves, after: Curves, weights: Weights, notes: Sequence[str]) -> Reproduction:
    """Say how far a run that was trained again is the run that there was."""
    first = first_difference(before, after)
    verdict: Verdict = "different"
    if not first and weights != "different":
        verdict = "equal"
    elif abs(_best(before) - _best(after)) <= TOLERANCE:
        verdict = "within tolerance"
    return Reproduction(run_id=run_id, verdict=verdict, first_difference=first, weights=weights, notes=tuple(notes))


def first_difference(before: Curves, after: Curves) -> str:
    """Name the first step at which a metric differs, and both values; empty: there is none."""
    places = sorted({(step, name) for curves in (before, after) for name in curves for step, _ in curves[name]})
    for step, name in places:
        values = [dict(curves.get(name, ())).get(step) for curves in (before, after)]
        if values[0] != values[1]:
            shown = " and ".join("nothing" if value is None else f"{value:.9g}" for value in values)
            return f"step {step}, {name}: {shown}"
    return ""


def _best(curves: Curves) -> float:
    return max((value for _, value in curves.get("val/accuracy", ())), default=0.0)


def _notes(run: "TrainedRun", code: str) -> Iterator[str]:
    from models.tracking.runs import CODE

    if run.tags.get(CODE) not in (None, code):
        yield "the code differs from that of the run: it was changed and not committed, or the tool is another version"
    lock = _git("show", f"{run.git_commit}:{LOCK}")
    if lock.returncode == 0 and (ROOT / LOCK).is_file() and lock.stdout != (ROOT / LOCK).read_text(encoding="utf-8"):
        yield f"{LOCK} is another one than at the run's commit: packages may differ"
