"""Runs in MLflow: opened once, resumed under the same id, found again by what they were a training of."""

import json
import logging
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data.errors import UserError
from models.gate import Verdict
from models.job import TrainingJob, code_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TRAINED, VERDICT = "convoy.key", "convoy.trained", "convoy.verdict"
DATA_VERSION, CODE, GIT_COMMIT = "convoy.data_version", "convoy.code", "mlflow.source.git.commit"
PARITY_METRIC = "test/parity_error"
SYSTEM_METRICS_SECONDS = 5
ANSWER_SECONDS = 10


def connect(uri: str) -> MlflowClient:
    """Open the tracking server, or the database, at `uri`.

    Raises:
        UserError: it does not answer, or MLflow cannot use it; MLflow itself would try for four minutes.

    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    _require_answer(uri)
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(uri)
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"MLflow cannot use {_without_password(uri)}: {_one_line(error)}", exit_code=1) from error
    return client


def _require_answer(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(uri, timeout=ANSWER_SECONDS):  # noqa: S310 - an address that the user has set
            return
    except urllib.error.HTTPError:
        return  # it answers, if only to ask who we are, which MLflow will say
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # MLflow has settings of its own for certificates
            raise UserError(
                f"MLflow at {_without_password(uri)} does not answer ({_one_line(reason)}): start it, "
                "or set MLFLOW_TRACKING_URI to where it is",
                exit_code=1,
            ) from error


def _without_password(uri: str) -> str:
    address = urlsplit(uri)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True)
class TrainedRun:
    """A run whose training has ended, as the tracking knows it."""

    run_id: str
    data_version: str
    git_commit: str | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracking:
    """One experiment on one tracking server, or in one SQLite file."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Open, and create what is missing; `artifacts` is for an experiment in a file, a server has its own place.

        Raises:
            UserError: `uri` cannot be used, or the experiment was deleted.

        """
        self.uri = uri
        self.client = connect(uri)
        self.experiment_id = self._experiment_id(experiment, artifacts)

    def _experiment_id(self, name: str, artifacts: Path | None) -> str:
        if found := self.client.get_experiment_by_name(name):
            if found.lifecycle_stage == LifecycleStage.DELETED:
                raise UserError(
                    f"MLflow's experiment '{name}' was deleted: choose another name with registry.experiment, or "
                    f"restore it with `mlflow experiments restore --experiment-id {found.experiment_id}`"
                )
            return str(found.experiment_id)
        location = (artifacts / name).resolve().as_uri() if artifacts else None
        return str(self.client.create_experiment(name, artifact_location=location))

    def find_trained(self, key: str) -> TrainedRun | None:
        """Find the latest finished training of the job with this key."""
        return self._latest(f"tags.`{KEY}` = '{key}' and tags.`{TRAINED}` = 'true'")

    def latest_trained(self) -> TrainedRun | None:
        """Find the latest finished training, whatever its job."""
        return self._latest(f"tags.`{TRAINED}` = 'true'")

    def get(self, run_id: str) -> TrainedRun:
        """Look a run up."""
        return _as_trained(self.client.get_run(run_id))

    def _latest(self, filter_string: str) -> TrainedRun | None:
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], filter_string, order_by=order, max_results=1)
        return _as_trained(found[0]) if found else None

    def is_resumable(self, run_id: str) -> bool:
        """Whether the run exists and its training has not ended."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            return False
        return bool(run.info.lifecycle_stage == LifecycleStage.ACTIVE and run.data.tags.get(TRAINED) != "true")

    @contextmanager
    def open_run(self, run_id: str | None, name: str, git_commit: str | None) -> Iterator["RunLog"]:
        """Open a new run, or `run_id` again; its status says how the block was left."""
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
        tags = {GIT_COMMIT: git_commit} if git_commit else {}
        run = mlflow.start_run(
            run_id=run_id,
            experiment_id=None if run_id else self.experiment_id,
            run_name=None if run_id else name,
            tags=tags,
            log_system_metrics=True,
        )
        try:
            yield RunLog(self.client, run.info.run_id)
        except KeyboardInterrupt:
            mlflow.end_run("KILLED")
            raise
        except BaseException:
            mlflow.end_run("FAILED")
            raise
        mlflow.end_run("FINISHED")

    def log(self, run_id: str) -> "RunLog":
        """Add to a run that has ended, without opening it again."""
        return RunLog(self.client, run_id)


class RunLog:
    """What is written to one run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        """Look up how far the metrics have come, so that replayed steps are not doubled."""
        self._client, self.run_id = client, run_id
        run = client.get_run(run_id)
        self._last_step = {
            key: max(point.step for point in client.get_metric_history(run_id, key)) for key in run.data.metrics
        }

    def start(self, job: TrainingJob, facts: Mapping[str, object]) -> None:
        """Say what the run is a training of."""
        params = job.params | {name: str(value) for name, value in facts.items()}
        self._client.log_batch(self.run_id, params=[Param(*item) for item in params.items()])
        self.tag({KEY: job.key, DATA_VERSION: job.data_version, CODE: code_digest()})
        dataset = MetaDataset(
            LocalArtifactDatasetSource(str(job.prepared)), name=job.manifest.source, digest=job.data_version
        )
        mlflow.log_input(dataset, context="training")

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics of one step in one request; those that an earlier attempt has written are left out."""
        now = int(time() * 1000)
        new = {key: value for key, value in metrics.items() if step > self._last_step.get(key, -1)}
        self._last_step |= dict.fromkeys(new, step)
        if new:
            self._client.log_batch(self.run_id, [Metric(key, float(value), now, step) for key, value in new.items()])

    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a picture."""
        self._client.log_figure(self.run_id, figure, f"figures/{name}.png")

    def record(self, content: object, name: str) -> None:
        """Keep a record as JSON."""
        self._client.log_text(self.run_id, json.dumps(content, indent=1, ensure_ascii=False), f"{name}.json")

    def verdict(self, verdict: Verdict) -> None:
        """Keep the verdict of the gate with all its figures."""
        self.record(verdict.model_dump(mode="json") | {"passed": verdict.passed}, "verdict")
        self.tag({VERDICT: "passed" if verdict.passed else f"failed: {verdict.failures}"})

    def history(self, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Read back the values of metrics, as (step, value)."""
        return {
            key: [(point.step, point.value) for point in self._client.get_metric_history(self.run_id, key)]
            for key in keys
        }


def _as_trained(run: Run) -> TrainedRun:
    tags = dict(run.data.tags)
    return TrainedRun(
        run.info.run_id,
        tags.get(DATA_VERSION, ""),
        tags.get(GIT_COMMIT),
        dict(run.data.params),
        dict(run.data.metrics),
        tags,
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
