"""Pages that need nothing else: HTML from templates, with style and pictures inside."""

from pathlib import Path
from typing import Any

IN_NO_KEY = "How results are shown changes none."

FOLDER = Path(__file__).with_suffix("")
"""Holds what the templates of all rooms have in common."""


def render(template: Path, **values: Any) -> str:
    """Fill a template in; text in `values` is escaped, and a name that the template misses is an error."""
    import jinja2

    places = jinja2.FileSystemLoader([template.parent, FOLDER])
    environment = jinja2.Environment(
        loader=places, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, points=points, size=size, milliseconds=milliseconds)
    return environment.get_template(template.name).render(values)


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Write the difference of two shares, with its sign."""
    return f"{100 * difference:+.1f}"


def size(num_bytes: float) -> str:
    """Write a number of bytes."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def milliseconds(seconds: float) -> str:
    """Write a time."""
    return f"{1000 * seconds:.3g} ms"
