"""Describes the changes of a stage since its last run. DVC reports changes in its own structures."""

from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.quality.decisions import DECISIONS_FILE

WHOLE_INPUTS = {
    "fingerprint": "the source",
    "decisions": DECISIONS_FILE,
    "code.ingest": "the code",
    "code.prepare": "the code",
}
"""Names of the inputs that are tracked as one digest."""


def changed_params(stage: Any, content: dict[str, Any]) -> list[str]:
    """Describe each parameter whose value in `content` differs from dvc.lock."""
    words = []
    for dependency in stage.deps:
        before = getattr(dependency.hash_info, "value", None)
        if not isinstance(before, dict):
            continue
        for section, values in before.items():
            now = reduce(dict.__getitem__, section.split("."), content)
            if not isinstance(values, dict):
                words += [f"{WHOLE_INPUTS[section]} has changed"] if now != values else []
                continue
            for name in sorted(values.keys() | now.keys()):
                old, new = values.get(name), now.get(name)
                words += [f"data.{name} {old} -> {new}"] if old != new else []
    return words


def changed_files(changes: list[Any]) -> list[str]:
    """Describe changes in DVC's form, `[{"changed deps": {"data/raw": "modified"}}, "changed command"]`."""
    words = []
    for change in changes:
        if isinstance(change, str):
            words.append(change)
            continue
        for kind, files in change.items():
            named = [name for name, state in files.items() if isinstance(state, str) and not name.endswith(".json")]
            words += [f"{name} {files[name] if 'deps' in kind else 'is missing or altered'}" for name in named]
    return words


def changed_counts(config: DataConfig, raw: Path) -> str:
    """Describe how the numbers of images in the source and in `raw` differ, by class; "" if they do not."""
    import pyarrow.parquet as pq

    from data.ingest.raw_shards import raw_shards
    from data.sources.registry import open_source

    now = Counter(image.label for image in open_source(config).list_images().images)
    before = Counter[str]()
    for shard in raw_shards(raw):
        before.update(pq.read_table(shard, columns=["label"])["label"].to_pylist())
    changed = [name for name in sorted(now | before) if now[name] != before[name]]
    return ", ".join(f"{name} {before[name]:,} -> {now[name]:,}" for name in changed)
