"""Runs in MLflow: opened once, resumed under the same id, found again by what they were a training of."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from core.errors import UserError, one_line
from core.tool import tool_version
from models.judging.gate import Verdict
from models.tracking.connection import MISSING, asking, connect
from models.tracking.journal import Point
from models.training.job import TrainingJob

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TRAINED, VERDICT, SOURCE = "convoy.key", "convoy.trained", "convoy.verdict", "convoy.source"
DATA_VERSION, CODE, GIT_COMMIT = "convoy.data_version", "convoy.code", "mlflow.source.git.commit"
TOOL = "convoy.tool_version"
PARITY_METRIC = "test/parity_error"
INT8 = "convoy.int8"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: MLflow's page opens it with its runs, and not with traces of language models."""
NOTE, MAX_NOTE = "mlflow.note.content", 8000
"""MLflow shows the text of this tag above a run, and cuts it."""
PARENT = "mlflow.parentRunId"
"""MLflow shows a run below the one that this tag names."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class TrainedRun:
    """A run whose training has ended, as the tracking knows it."""

    run_id: str
    data_version: str
    git_commit: str | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True)
class FoundRun:
    """How far a run has come, as the tracking knows it."""

    is_running: bool
    is_trained: bool
    """whether its training has ended"""


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
            for key, value in KIND.items() - found.tags.items():
                self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        location = (artifacts / name).resolve().as_uri() if artifacts else None
        return str(self.client.create_experiment(name, artifact_location=location, tags=KIND))

    def find_trained(self, key: str) -> TrainedRun | None:
        """Find the latest finished training of the job with this key."""
        return self._latest(f"tags.`{KEY}` = '{key}' and tags.`{TRAINED}` = 'true'")

    def latest_trained(self) -> TrainedRun | None:
        """Find the latest finished training, whatever its job."""
        return self._latest(f"tags.`{TRAINED}` = 'true'")

    def all_trained(self) -> list[TrainedRun]:
        """List the finished trainings, the latest first; of many, the latest thousand."""
        order, trained = ["attributes.start_time DESC"], f"tags.`{TRAINED}` = 'true'"
        found = self.client.search_runs([self.experiment_id], trained, order_by=order, max_results=1000)
        return [_as_trained(run) for run in found]

    def get(self, run_id: str) -> TrainedRun:
        """Look a run up."""
        return _as_trained(self.client.get_run(run_id))

    def _latest(self, filter_string: str) -> TrainedRun | None:
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], filter_string, order_by=order, max_results=1)
        return _as_trained(found[0]) if found else None

    def find(self, run_id: str) -> "FoundRun | None":
        """Look for a run that may not be there, or was deleted.

        Raises:
            UserError: the tracking does not answer.

        """
        with asking(self.uri):
            try:
                run = self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code in MISSING:
                    return None
                raise
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            return None
        return FoundRun(run.info.status == "RUNNING", run.data.tags.get(TRAINED) == "true")

    def is_resumable(self, run_id: str) -> bool:
        """Whether the run exists and its training has not ended.

        Raises:
            UserError: the tracking does not answer, and what there is of the training must not be thrown away.

        """
        found = self.find(run_id)
        return bool(found and not found.is_trained)

    def end(self, run_id: str, status: str, when: float | None = None) -> None:
        """End a run, as of a time in seconds since 1970 or as of now.

        Raises:
            UserError: the tracking does not answer.

        """
        with asking(self.uri):
            self.client.set_terminated(run_id, status, end_time=None if when is None else int(when * 1000))

    @contextmanager
    def open_run(self, run_id: str | None, name: str, git_commit: str | None) -> Iterator["RunLog"]:
        """Open a new run, or `run_id` again; its status says how the block was left."""
        tags = resolve_tags({GIT_COMMIT: git_commit} if git_commit else {})
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
            self.log(run_id).tag(tags)
        else:
            run_id = str(self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id)
        try:
            yield self.log(run_id)
        except KeyboardInterrupt:
            self._end_early(run_id, "KILLED")
            raise
        except BaseException:
            self._end_early(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def _end_early(self, run_id: str, status: str) -> None:
        """Set the status, unless the server is away: this is not what the block was left for."""
        try:
            self.end(run_id, status)
        except UserError as error:
            _log.warning("train: run %s is still RUNNING in MLflow: %s", run_id[:8], one_line(error))

    def log(self, run_id: str) -> "RunLog":
        """Add to a run, whether it is open or has ended."""
        return RunLog(self.client, run_id, self.uri)


class RunLog:
    """What is written to one run. Its methods for metrics raise `UserError` where the tracking does not answer."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str) -> None:
        """Write to a run of the tracking at `uri`."""
        self._client, self.run_id, self._uri = client, run_id, uri

    def last_steps(self) -> dict[str, int]:
        """Give the last step of each metric that the run has."""
        with asking(self._uri):
            # MLflow gives the steps in no other way but the whole history of each metric.
            return {latest.key: latest.step for latest in self._client.get_run(self.run_id).data._metric_objs}

    def send(self, points: Sequence[Point]) -> None:
        """Write metrics of any steps in one request."""
        with asking(self._uri):
            metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
            self._client.log_batch(self.run_id, metrics)

    def start(self, job: TrainingJob, facts: Mapping[str, object]) -> None:
        """Say what the run is a training of."""
        params = job.params | {name: str(value) for name, value in facts.items()}
        self._client.log_batch(self.run_id, params=[Param(*item) for item in params.items()])
        self.tag({KEY: job.key, DATA_VERSION: job.data_version, CODE: job.code, TOOL: tool_version()})
        dataset = MetaDataset(
            LocalArtifactDatasetSource(str(job.prepared)), name=job.manifest.source, digest=job.data_version
        )
        training = DatasetInput(dataset._to_mlflow_entity(), tags=[InputTag(MLFLOW_DATASET_CONTEXT, "training")])
        self._client.log_inputs(self.run_id, [training])

    def rename(self, name: str) -> None:
        """Give the run another name."""
        self._client.update_run(self.run_id, name=name)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics of one step, those that the run does not have, at once: for figures, not for curves."""
        last = self.last_steps()
        now = int(time() * 1000)
        self.send([Point(key, step, float(value), now) for key, value in metrics.items() if step > last.get(key, -1)])

    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a picture."""
        self._client.log_figure(self.run_id, figure, f"figures/{name}.png")

    def page(self, html: str, name: str) -> None:
        """Keep a page, which MLflow shows."""
        self.text(html, f"{name}.html")

    def text(self, text: str, file: str) -> None:
        """Keep a text."""
        self._client.log_text(self.run_id, text, file)

    def record(self, content: object, name: str) -> None:
        """Keep a record as JSON."""
        self._client.log_text(self.run_id, json.dumps(content, indent=1, ensure_ascii=False), f"{name}.json")

    def verdict(self, verdict: Verdict) -> None:
        """Keep the verdict of the gate with all its figures."""
        self.record(verdict.model_dump(mode="json") | {"outcome": verdict.outcome}, "verdict")
        self.tag({VERDICT: "passed" if verdict.outcome == "passed" else f"{verdict.outcome}: {verdict.why}"})

    def describe(self, markdown: str) -> None:
        """Show a text above the run in MLflow, as far as MLflow keeps texts."""
        self.tag({NOTE: markdown})

    def read(self, name: str) -> str | None:
        """Read a file of the run back; None where there is none."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(self.run_id, name, folder)).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                return None

    def history(self, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Read back the values of metrics, as (step, value)."""
        return {
            key: [(point.step, point.value) for point in self._client.get_metric_history(self.run_id, key)]
            for key in keys
        }

    def best_accuracy(self) -> float:
        """Give the highest validation accuracy of the run."""
        return max((value for _, value in self.history(["val/accuracy"])["val/accuracy"]), default=0.0)


def system_metrics() -> Callable[[], dict[str, float]]:
    """Give a function that measures the use of processor, memory, disk, network and GPU."""
    monitor = SystemMetricsMonitor(run_id=None)

    def measure() -> dict[str, float]:
        monitor.collect_metrics()
        measured = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for each in monitor.monitors:
            each.clear_metrics()
        return measured

    return measure


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
