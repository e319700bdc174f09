"""Runs in MLflow. A run is resumed under the same id, and found again by the key of its training job."""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
MEASURED = "convoy.metrics"
"""Names the code of `evaluation.metrics` whose figures a run has."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment, so that MLflow opens it with its runs and not with traces of language models."""
NOTE, MAX_NOTE = "mlflow.note.content", 8000
"""Tag whose text MLflow shows above a run, and the length at which MLflow cuts the text."""
PARENT = "mlflow.parentRunId"
"""Tag with the id of the parent run. MLflow shows a run below its parent."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class TrainedRun:
    """Run whose training has finished, as recorded in MLflow."""

    run_id: str
    data_version: str
    git_commit: str | None
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True)
class FoundRun:
    """State of a run, as recorded in MLflow."""

    is_running: bool
    is_trained: bool
    """whether its training has finished"""


class Tracking:
    """One experiment on a tracking server, or in a SQLite file."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None) -> None:
        """Open the experiment, or create it. `artifacts` is for an experiment in a file; a server has its own folder.

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
        """List the finished trainings, latest first, at most a thousand."""
        order, trained = ["attributes.start_time DESC"], f"tags.`{TRAINED}` = 'true'"
        found = self.client.search_runs([self.experiment_id], trained, order_by=order, max_results=1000)
        return [_as_trained(run) for run in found]

    def get(self, run_id: str) -> TrainedRun:
        """Return a run."""
        return _as_trained(self.client.get_run(run_id))

    def _latest(self, filter_string: str) -> TrainedRun | None:
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], filter_string, order_by=order, max_results=1)
        return _as_trained(found[0]) if found else None

    def find(self, run_id: str) -> "FoundRun | None":
        """Return the state of a run, or None if it does not exist or was deleted.

        Raises:
            UserError: MLflow does not answer.

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
        """Whether the run exists and its training has not finished.

        Raises:
            UserError: MLflow does not answer. The training's checkpoints must then be kept.

        """
        found = self.find(run_id)
        return bool(found and not found.is_trained)

    def end(self, run_id: str, status: str, when: float | None = None) -> None:
        """End a run, at a time in seconds since 1970, by default now.

        Raises:
            UserError: MLflow does not answer.

        """
        with asking(self.uri):
            self.client.set_terminated(run_id, status, end_time=None if when is None else int(when * 1000))

    @contextmanager
    def open_run(self, run_id: str | None, name: str, git_commit: str | None) -> Iterator["RunLog"]:
        """Open a new run, or `run_id` again. The block's outcome decides the run's status."""
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
        """Set the status. If MLflow does not answer, only log a warning, because the block's own error matters more."""
        try:
            self.end(run_id, status)
        except UserError as error:
            _log.warning("train: run %s is still RUNNING in MLflow: %s", run_id[:8], one_line(error))

    def log(self, run_id: str) -> "RunLog":
        """Return the log of a run, which may be open or ended."""
        return RunLog(self.client, run_id, self.uri)


class RunLog:
    """Writes to one run. The methods for metrics raise `UserError` if MLflow does not answer."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str) -> None:
        """Write to a run in MLflow at `uri`."""
        self._client, self.run_id, self._uri = client, run_id, uri

    def last_steps(self) -> dict[str, int]:
        """Return the last step of each metric of the run."""
        with asking(self._uri):
            # MLflow's public interface gives steps only with the whole history of each metric.
            return {latest.key: latest.step for latest in self._client.get_run(self.run_id).data._metric_objs}

    def send(self, points: Sequence[Point]) -> None:
        """Write metrics of any steps in one request."""
        with asking(self._uri):
            metrics = [Metric(point.name, point.value, point.time, point.step) for point in points]
            self._client.log_batch(self.run_id, metrics)

    def start(self, job: TrainingJob, facts: Mapping[str, object]) -> None:
        """Record the training job of the run."""
        params = job.params | {name: str(value) for name, value in facts.items()}
        self._client.log_batch(self.run_id, params=[Param(*item) for item in params.items()])
        self.tag({KEY: job.key, DATA_VERSION: job.data_version, CODE: job.code, TOOL: tool_version()})
        dataset = MetaDataset(
            LocalArtifactDatasetSource(str(job.prepared)), name=job.manifest.source, digest=job.data_version
        )
        training = DatasetInput(dataset._to_mlflow_entity(), tags=[InputTag(MLFLOW_DATASET_CONTEXT, "training")])
        self._client.log_inputs(self.run_id, [training])

    def rename(self, name: str) -> None:
        """Rename the run."""
        self._client.update_run(self.run_id, name=name)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the metrics of one step, except those that the run has, in one request. Not for learning curves."""
        last = self.last_steps()
        now = int(time() * 1000)
        self.send([Point(key, step, float(value), now) for key, value in metrics.items() if step > last.get(key, -1)])

    def renew(self, metrics: Mapping[str, float]) -> None:
        """Write metrics of step 0 in the place of those that the run has."""
        self.send([Point(key, 0, value, int(time() * 1000)) for key, value in metrics.items()])

    def figure(self, figure: "Figure", name: str) -> None:
        """Store a figure."""
        self._client.log_figure(self.run_id, figure, f"figures/{name}.png")

    def page(self, html: str, name: str) -> None:
        """Store an HTML page, which MLflow displays."""
        self.text(html, f"{name}.html")

    def text(self, text: str, file: str) -> None:
        """Store a text."""
        self._client.log_text(self.run_id, text, file)

    def record(self, content: object, name: str) -> None:
        """Store a record as JSON."""
        self._client.log_text(self.run_id, json.dumps(content, indent=1, ensure_ascii=False), f"{name}.json")

    def verdict(self, verdict: Verdict) -> None:
        """Store the gate's verdict with all its figures."""
        self.record(verdict.model_dump(mode="json") | {"outcome": verdict.outcome}, "verdict")
        self.tag({VERDICT: "passed" if verdict.outcome == "passed" else f"{verdict.outcome}: {verdict.why}"})

    def describe(self, markdown: str) -> None:
        """Show a text above the run in MLflow."""
        self.tag({NOTE: markdown})

    def read(self, name: str) -> str | None:
        """Read a file of the run, or return None if it does not exist."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(self.run_id, name, folder)).read_text(encoding="utf-8")
            except (MlflowException, OSError):
                return None

    def history(self, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Return the values of metrics, as (step, value)."""
        return {
            key: [(point.step, point.value) for point in self._client.get_metric_history(self.run_id, key)]
            for key in keys
        }

    def best_accuracy(self) -> float:
        """Return the highest validation accuracy of the run."""
        return max((value for _, value in self.history(["val/accuracy"])["val/accuracy"]), default=0.0)


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
