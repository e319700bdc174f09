"""Pages that need nothing else: HTML from templates, with style and pictures inside."""

import re
from pathlib import Path
from typing import Any

IN_NO_KEY = "How results are shown changes none."

FOLDER = Path(__file__).with_suffix("")
"""Holds what the templates of all rooms have in common."""


def render(template: Path, **values: Any) -> str:
    """Fill in a template of HTML; text in `values` is escaped, and a name that the template misses is an error."""
    return _fill_in(template, values, escapes=True)


def render_text(template: Path, **values: Any) -> str:
    """Fill in a template of Markdown; the filter `cell` keeps names from ending the cell or the row of a table."""
    return _fill_in(template, values, escapes=False)


def _fill_in(template: Path, values: dict[str, Any], *, escapes: bool) -> str:
    import jinja2

    places = jinja2.FileSystemLoader([template.parent, FOLDER])
    environment = jinja2.Environment(
        loader=places,
        autoescape=escapes,  # noqa: S701 - of Markdown, `cell` takes care
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, size=size, milliseconds=milliseconds, cell=cell)
    return environment.get_template(template.name).render(values)


def cell(text: object) -> str:
    """Write a text into one line of Markdown that is no HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(str(text).split()).replace("|", "\\|"))


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
