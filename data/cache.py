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


def local_remote(workspace: Path) -> Path | None:
    """Give the folder of the default remote; None where there is none, or where it is no folder of this machine.

    Raises:
        UserError: the workspace is not under version control.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        name = repo.config["core"].get("remote")
        url = str(repo.config["remote"].get(name, {}).get("url", "")) if name else ""
        # DVC has made a relative address absolute.
        return Path(url) if url and "://" not in url else None


def pull(workspace: Path) -> None:
    """Bring the data that `dvc.lock` names back from the remote.

    Raises:
        UserError: the remote cannot be reached, or lacks some of it.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        repo.pull()
