import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """End the sentence that says that a name is not known: with those that look like it, or with some that are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return f"; the nearest are {', '.join(near)}"
    return f"; known are {', '.join(known[:5])}" if known else ""
