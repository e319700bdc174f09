"""MLflow's database where it is a SQLite file: copied while it is written, and told that its artifacts have moved."""

import sqlite3
from contextlib import closing
from pathlib import Path

LOCATIONS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns that hold where files are."""


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, whoever writes it meanwhile."""
    with closing(sqlite3.connect(source)) as before, closing(sqlite3.connect(target)) as after:
        before.backup(after)
        # The copy is one file, whatever the original's journal is.
        after.execute("PRAGMA journal_mode=DELETE")


def move_artifacts(database: Path, before: str, after: str) -> None:
    """Replace the beginning `before` of each location by `after`; both are URIs of folders."""
    if before == after:
        return
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in LOCATIONS.items():
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in columns:
                if column in there:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names of our own
                        f" WHERE substr({column}, 1, ?) = ?",
                        (after, len(before) + 1, len(before), before),
                    )
