import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of the message that a name is unknown: similar names, or else some known names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return f"; the nearest are {', '.join(near)}"
    return f"; known are {', '.join(known[:5])}" if known else ""
