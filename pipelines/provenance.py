"""Source of the images on each run, so that no command trains on another source than the champion's by mistake."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.errors import UserError
from data.stages import PARAMS_FILE
from models.tracking.registry import CHAMPION
from models.tracking.runs import SOURCE, Tracking
from pipelines.config import Config
from pipelines.workspace import ROOT, open_registry, open_tracking


class Origin(BaseModel):
    """Source of labelled images."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str
    path: Path | None

    @classmethod
    def of(cls, source: str, path: Path | str | None) -> "Origin":
        """Make an origin from the configuration. A relative path begins in the workspace."""
        return cls(source=source, path=(ROOT / path).resolve() if path else None)

    @property
    def options(self) -> str:
        """Command-line options that select these images."""
        return f"--set data.source={self.source} --set data.path={self.path or 'null'}"

    def __str__(self) -> str:
        return f"{self.source} {str(self.path)!r}" if self.path else self.source


def require_known_source(config: Config, images: Literal["configured", "prepared"]) -> None:
    """Refuse to train on another source than the champion's, unless the configuration allows it.

    Raises:
        UserError: the sources differ, and gate.allow_new_source is false.

    """
    now = Origin.of(config.data.source, config.data.path) if images == "configured" else _prepared_origin()
    if config.gate.allow_new_source or now is None or (champion := open_registry(config).by_alias(CHAMPION)) is None:
        return
    known = _origin_of(open_tracking(config), champion.run_id)
    if known in (None, now):
        return
    prepare = "" if images == "configured" else "prepare those images again with `convoy data prepare` and "
    raise UserError(
        f"the champion, {champion}, was trained on {known}, and this command would train on {now}: {prepare}type "
        f"{known.options}, or --set gate.allow_new_source=true to train on the new images"
    )


def note_source(tracking: Tracking, run_id: str) -> None:
    """Store the source of the images on a run."""
    now = _prepared_origin()
    if now and now != _origin_of(tracking, run_id):
        tracking.log(run_id).tag({SOURCE: now.model_dump_json()})


def _prepared_origin() -> Origin | None:
    """Return the source of `data/prepared`, or None if the data was prepared elsewhere."""
    if not (ROOT / PARAMS_FILE).is_file():
        return None
    made_from = json.loads((ROOT / PARAMS_FILE).read_text(encoding="utf-8"))["ingest"]
    return Origin.of(made_from["source"], made_from["path"])


def _origin_of(tracking: Tracking, run_id: str) -> Origin | None:
    """Return the source stored on a run, or None for an old run without one."""
    noted = tracking.get(run_id).tags.get(SOURCE)
    return Origin.model_validate_json(noted) if noted else None
