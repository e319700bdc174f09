"""What happens without a person: what is kept for how long."""

from pydantic import Field

from core.sections import Section

Days = float | None


class RetentionConfig(Section):
    """How long files are kept that a project can do without; what is in use stays in any case."""

    runs_days: Days = Field(None, gt=0)
    """days that a run is kept that registered no model and is of other data than today's; null: forever"""
    checkpoints_days: Days = Field(None, gt=0)
    """days that the checkpoints of a training are kept; for a model in use, the best one stays; null: forever"""
    features_days: Days = Field(None, gt=0)
    """days that features of images are kept, which a probe would compute again; null: forever"""
    bentos: int | None = Field(None, ge=1)
    """number of packaged models that are kept for each target, the newest first; null: all"""
    copies_days: Days = Field(30, gt=0)
    """days that copies are kept of what MLflow or the DVC remote has too; null: forever"""
    logs_days: Days = Field(30, gt=0)
    """days that logs of servers are kept; null: forever"""
