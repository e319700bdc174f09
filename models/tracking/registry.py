"""Versions of the registered model in MLflow, and their aliases."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from core.errors import UserError
from core.files import file_sha256, whole_file
from models.exported.manifest import MODEL_FILE, ModelManifest
from models.exported.predictor import MANIFEST_FILE, read_model_manifest
from models.tracking.connection import MISSING, connect

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
EXTRA_FILES = "extra_files"
"""Folder of a logged model for files that MLflow does not know."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class ModelVersion:
    """Registered version of a model, with its lineage."""

    name: str
    version: str
    run_id: str
    data_version: str
    git_commit: str | None
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Registry:
    """Registered model in MLflow."""

    def __init__(self, uri: str, name: str) -> None:
        """Open the registry of the tracking server at `uri`.

        Raises:
            UserError: the server does not answer.

        """
        self._client = connect(uri)
        self.name = name

    def by_alias(self, alias: str) -> ModelVersion | None:
        """Find the version with an alias, such as `champion`."""
        try:
            found = self._client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if self._is_missing(error):
                return None
            raise
        return self.get(found.version)

    def _is_missing(self, error: MlflowException) -> bool:
        """Whether an error means that the model, version or alias does not exist.

        For a missing model, MLflow answers PERMISSION_DENIED to a user who is not an administrator.
        """
        if error.error_code == "PERMISSION_DENIED":
            return not self._client.search_registered_models(f"name = '{self.name}'")
        return error.error_code in MISSING

    def by_run(self, run_id: str) -> ModelVersion | None:
        """Find the version that a run registered."""
        found = self._client.search_model_versions(f"name = '{self.name}' and run_id = '{run_id}'")
        return self.get(found[0].version) if found else None

    def versions(self) -> dict[str, str]:
        """Return the version that each run registered, by run id."""
        found = self._client.search_model_versions(f"name = '{self.name}'")
        return {one.run_id: str(one.version) for one in found}

    def aliases(self) -> dict[str, str]:
        """Return the version of each alias."""
        found = self._client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(version) for one in found for alias, version in one.aliases.items()}

    def find(self, version: str) -> ModelVersion | None:
        """Return a version, or None if it does not exist."""
        try:
            return self.get(version)
        except MlflowException as error:
            if self._is_missing(error):
                return None
            raise

    def get(self, version: str) -> ModelVersion:
        """Return a version."""
        found = self._client.get_model_version(self.name, version)
        tags = found.tags
        commit = tags.get("git_commit") or None
        return ModelVersion(
            self.name, str(found.version), found.run_id, tags.get("data_version", ""), commit, tuple(found.aliases)
        )

    def register(self, folder: Path) -> ModelVersion:
        """Log the model in `folder` on its run, register it, and make it the challenger."""
        manifest = read_model_manifest(folder)
        model_id = _log_model(folder, manifest)
        if not self._client.search_registered_models(f"name = '{self.name}'"):
            self._client.create_registered_model(self.name)
        tags = {
            "data_version": manifest.data_version,
            "git_commit": manifest.git_commit or "",
            "network": manifest.network,
        }
        created = self._client.create_model_version(
            self.name, source=f"models:/{model_id}", run_id=manifest.run_id, tags=tags, model_id=model_id
        )
        self._client.set_registered_model_alias(self.name, CHALLENGER, created.version)
        return self.get(created.version)

    def promote(self, version: ModelVersion) -> ModelVersion:
        """Make a version the champion. The old champion gets the alias `previous`."""
        champion = self.by_alias(CHAMPION)
        if champion and champion.version != version.version:
            self._client.set_registered_model_alias(self.name, PREVIOUS, champion.version)
        self._client.set_registered_model_alias(self.name, CHAMPION, version.version)
        if CHALLENGER in version.aliases:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)
        return self.get(version.version)

    def restore(self, version: str) -> ModelVersion:
        """Make a version the champion again.

        Raises:
            UserError: the version was deleted.

        """
        if self.find(version) is None:
            raise UserError(f"{self.name} has no version {version} any more", exit_code=1)
        self._client.set_registered_model_alias(self.name, CHAMPION, version)
        return self.get(version)

    def name_previous(self, version: str | None) -> None:
        """Give a version the alias `previous`. For None or a deleted version, remove the alias."""
        if version and self.find(version):
            self._client.set_registered_model_alias(self.name, PREVIOUS, version)
        elif self.by_alias(PREVIOUS):
            self._client.delete_registered_model_alias(self.name, PREVIOUS)

    def download(self, version: ModelVersion, models: Path) -> Path:
        """Download a version into its own folder below `models`, and fill its number into the manifest.

        Raises:
            UserError: MLflow no longer has its files.

        """
        folder = models / f"{self.name}-{version.version}-{version.run_id[:8]}"
        if _is_whole(folder):
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models) as scratch:
            logged = _fetch(f"models:/{self.name}/{version.version}", Path(scratch))
            manifest = read_model_manifest(logged / EXTRA_FILES).model_copy(update={"version": version.version})
            for name in manifest.files:
                shutil.move(logged / name if name == MODEL_FILE else logged / EXTRA_FILES / name, folder / name)
        write_manifest(folder, manifest)
        return folder


def _is_whole(folder: Path) -> bool:
    """Whether a complete, unchanged download exists."""
    try:
        manifest = read_model_manifest(folder)
    except UserError:
        return False
    return all(
        (folder / name).is_file() and file_sha256(folder / name) == sha256 for name, sha256 in manifest.files.items()
    )


def _fetch(uri: str, scratch: Path) -> Path:
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow cannot give the files of {uri} ({type(error).__name__}): restore its artifacts, or train again",
            exit_code=1,
        ) from error


def write_manifest(folder: Path, manifest: ModelManifest) -> None:
    """Write the manifest beside an exported model."""
    with whole_file(folder / MANIFEST_FILE) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def normalize_file(path: Path) -> None:
    """Rewrite an ONNX file in the way MLflow will, so that its checksum stays the same."""
    import onnx

    onnx.save_model(onnx.load(path), path)


def _log_model(folder: Path, manifest: ModelManifest) -> str:
    """Log the model in MLflow's ONNX flavour, which MLflow's tools can read. Returns the id of the logged model."""
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    crop = manifest.preprocessing.crop
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, crop, crop, 3), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(manifest.classes)), "probabilities")]),
    )
    with mlflow.start_run(run_id=manifest.run_id):
        logged = mlflow.onnx.log_model(
            onnx.load(folder / MODEL_FILE),
            name="model",
            signature=signature,
            pip_requirements=["onnxruntime", "numpy"],
            # MLflow rewrites the ONNX file, but copies these files.
            extra_files=[str(folder / name) for name in (MANIFEST_FILE, *manifest.files) if name != MODEL_FILE],
            save_as_external_data=False,
        )
    return str(logged.model_id)
