"""DVC's cache: what of it can go, because the remote has it and the project does not use it now."""

from dataclasses import dataclass
from pathlib import Path

from data.versioning import open_repo, readable_errors


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache."""

    path: Path
    num_bytes: int


def unused_files(workspace: Path, before: float) -> list[CachedFile]:
    """Give the files of the cache from before a time in seconds since 1970 that the remote has and nothing here uses.

    What `dvc.lock` names is used, and so is what it names in any branch or tag.

    Raises:
        UserError: there is no remote, or it cannot be read.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        cache = repo.cache.local
        old = {}
        for oid in cache.all():
            path = Path(cache.oid_to_path(oid))
            status = path.stat()
            if status.st_mtime < before:
                old[oid] = CachedFile(path, status.st_size)
        if not old:
            return []
        used = repo.used_objs(all_branches=True, all_tags=True)
        for objects in used.values():
            for one in objects:
                old.pop(one.value, None)
        remote = repo.cloud.get_remote_odb(None, "clean", hash_name="md5")
        return [old[oid] for oid in sorted(remote.list_oids_exists(list(old)))] if old else []
