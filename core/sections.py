"""Base of the configuration classes: sections of params.yaml."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

IN_NO_KEY = "Values count by themselves."


Switch = Literal[True, False, "auto"]


def _expand(value: object) -> object:
    """Expand `~` to the home directory. An empty path becomes None."""
    if value == "":
        return None
    return Path(value).expanduser() if isinstance(value, str) else value


OptionalPath = Annotated[Path | None, BeforeValidator(_expand)]


class Section(BaseModel):
    """One section of params.yaml: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
