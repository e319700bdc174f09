"""The commands that keep a project in order."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import AsJson, Overrides, start, typed_here

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


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make.", callback=typed_here)],
) -> None:
    """Copy runs, models, data, ledger and configuration to a new folder, while runs go on."""
    start(None, says=f"backup: copies to {folder}")
    from pipelines.operations.backup import back_up

    manifest = back_up(folder)
    total = sum(size for size, _ in manifest.files.values())
    print(f"{folder} holds {len(manifest.files):,} files, {total / 1e6:,.1f} MB; `convoy restore` brings them back")


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `convoy backup` made.", callback=typed_here)],
) -> None:
    """Restore a backup into the current folder, which holds no runs."""
    import logging

    from pipelines.settings import prepare_environment

    prepare_environment(Path())
    logging.basicConfig(format="%(message)s")
    from pipelines.operations.restore import restore as restore_backup

    manifest = restore_backup(folder)
    print(f"restored the backup of {manifest.when:%Y-%m-%d %H:%M} UTC; `convoy status` says what there is")
