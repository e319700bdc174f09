from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from models.tracking.journal import Journal


class RunLogger(Logger):
    """Writes Lightning's metrics to the journal of a run: the training waits for the disk, never for MLflow."""

    def __init__(self, run_id: str, journal: Journal) -> None:
        """Write to `journal`."""
        super().__init__()
        self._run_id, self._journal = run_id, journal

    @property
    def name(self) -> str:
        """Lightning asks."""
        return "mlflow"

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run_id

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """One line for all metrics of a step."""
        self._journal.append(metrics, step or 0)

    def log_hyperparams(self, params: object, *_: object, **__: object) -> None:
        """The job's parameters are on the run already."""
