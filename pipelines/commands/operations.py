"""The commands that keep a project in order."""

import json
from typing import Annotated

import typer

from pipelines.commands.options import AsJson, Overrides, start

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")]


def clean(dry_run: DryRun = False, as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Remove what `retention` in params.yaml no longer keeps, and nothing that is in use."""
    config = start(overrides, says="clean: looks for what nobody refers to")
    from pipelines.operations.clean import clean as remove_old

    removals = remove_old(config, dry_run=dry_run)
    if as_json:
        names = ("kind", "name", "num_bytes", "why")
        print(json.dumps([{name: getattr(one, name) for name in names} for one in removals], indent=1))
        return
    for one in removals:
        print(f"{one.kind:11} {one.num_bytes / 1e6:9,.1f} MB  {one.name}: {one.why}")
    total = sum(one.num_bytes for one in removals) / 1e6
    print(f"{'would free' if dry_run else 'freed'} {total:,.1f} MB")
