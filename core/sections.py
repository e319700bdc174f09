"""Sections of params.yaml: what the configurations of all rooms are made of."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

IN_NO_KEY = "Values count by themselves."


Switch = Literal[True, False, "auto"]


def _expand(value: object) -> object:
    """`~` in a path means the home directory here as in a shell; an empty path is none."""
    if value == "":
        return None
    return Path(value).expanduser() if isinstance(value, str) else value


OptionalPath = Annotated[Path | None, BeforeValidator(_expand)]


class Section(BaseModel):
    """One section of params.yaml: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
