"""DVC's cache: files that can be deleted, because the remote has them and the project does not use them."""

from dataclasses import dataclass
from pathlib import Path

from data.versioning import open_repo, readable_errors


@dataclass(frozen=True)
class CachedFile:
    """File of the cache."""

    path: Path
    num_bytes: int


def unused_files(workspace: Path, before: float) -> list[CachedFile]:
    """Return the files of the cache that are older than `before`, in seconds since 1970, in the remote, and unused.

    Files that `dvc.lock` names in the workspace, or in any branch or tag, are used.

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
    """Return the folder of the default remote, or None if there is no remote, or the remote is no local folder.

    Raises:
        UserError: the workspace is not under version control.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        name = repo.config["core"].get("remote")
        url = str(repo.config["remote"].get(name, {}).get("url", "")) if name else ""
        # DVC has made a relative address absolute.
        return Path(url) if url and "://" not in url else None


def pull(workspace: Path) -> None:
    """Fetch the data that `dvc.lock` names from the remote.

    Raises:
        UserError: the remote cannot be reached, or lacks some of the data.

    """
    with open_repo(workspace) as repo, readable_errors(workspace):
        repo.pull()
