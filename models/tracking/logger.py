from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from models.tracking.journal import Journal


class RunLogger(Logger):
    """Writes Lightning's metrics to the journal of a run, so that the training never waits for MLflow."""

    def __init__(self, run_id: str, journal: Journal) -> None:
        """Write to `journal`."""
        super().__init__()
        self._run_id, self._journal = run_id, journal

    @property
    def name(self) -> str:
        """Name, which Lightning requires."""
        return "mlflow"

    @property
    def version(self) -> str:
        """Id of the run."""
        return self._run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of a step to the journal."""
        self._journal.append(metrics, step or 0)

    def log_hyperparams(self, params: object, *_: object, **__: object) -> None:
        """Do nothing: the run has the job's parameters already."""
