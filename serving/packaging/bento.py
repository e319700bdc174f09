import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict

from core import code
from core.errors import UserError
from core.files import file_sha256
from serving.config import ServingConfig
from serving.endpoint.answers import Examples
from serving.packaging.placement import load_target
from serving.packaging.tuning import (
    EXAMPLES_FILE,
    PACKING_FILE,
    PLACEMENT_FILE,
    SCHEMA_FILE,
    Packing,
    check_memory,
    choose_runtime,
    measure_packing,
)
from serving.targets import Placement, Runtime, Target, requirements

if TYPE_CHECKING:
    from models.exported.manifest import ModelManifest

SERVICE = "serving.endpoint.service:ConvoyService"
ENTRIES = ("serving.endpoint.service", "serving.endpoint.server")
"""Entry points of a Bento. A Bento holds these modules, the predictor's module, and everything that they import."""
SOURCE_FOLDER = "src"
"""Folder of a Bento that an endpoint runs from."""
MODEL_FOLDER = "model"
SETTINGS_FILE = "serving.json"
BENTO_FILE = "bento.yaml"

logger = logging.getLogger("convoy")


class Bento(BaseModel):
    """Packaged model in a BentoML store: everything that an endpoint needs, except its Python packages."""

    model_config = ConfigDict(frozen=True)

    tag: str
    """BentoML's tag, name:version"""
    target: str
    precision: str
    path: Path
    model_name: str
    model_version: str
    run_id: str
    data_version: str
    git_commit: str | None = None
    created: AwareDatetime

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the Bento in the folder `path`. Returns None if the Bento is missing, damaged or foreign."""
        try:
            info = yaml.safe_load((path / BENTO_FILE).read_text(encoding="utf-8"))
            tag = f"{info['name']}:{info['version']}"
            return cls(tag=tag, path=path.absolute(), created=info["creation_time"], **info["labels"])
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return None


def list_bentos(store: Path) -> list[Bento]:
    """List the Bentos in the folder `store`, newest first, without damaged and foreign Bentos.

    Reads only the descriptions, 3 ms each, and does not import bentoml.
    """
    found = (Bento.read(file.parent) for file in (store / "bentos").glob(f"*/*/{BENTO_FILE}"))
    return sorted((bento for bento in found if bento), key=lambda bento: bento.created, reverse=True)


def find_bento(store: Path, model_name: str, model_version: str, target: str) -> Bento | None:
    """Return the newest Bento of a registered model for a target, or None."""
    wanted = (model_name, model_version, target)
    found = (bento for bento in list_bentos(store) if (bento.model_name, bento.model_version, bento.target) == wanted)
    return next(found, None)


def build_bento(model: Path, config: ServingConfig, store: Path, examples: Examples | None = None) -> Bento:
    """Package the model in the folder `model` for `config.target` into the folder `store`, a BENTOML_HOME.

    The version consists of model version, target and a hash of the contents, such as `3-cpu-1f0c9a7e`. A Bento of the
    same model, settings, code and packages is reused. The store never holds an incomplete Bento. The endpoint's page
    shows `examples`.

    Raises:
        UserError: the model is incomplete, altered or not registered, or BentoML refuses to build.

    """
    plan = _plan(model, config, store, examples)
    if bento := Bento.read(plan.path):
        logger.info("%s is already packed", bento.tag)
        return bento
    scratch = store.absolute() / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=scratch) as folder, _staging(scratch) as staging:
        home = Path(folder, "home")
        for name, origin in plan.files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, staging / name)
        packing = {
            PACKING_FILE: measure_packing(model, plan.placement.runtime, plan.placement.target).model_dump_json(
                indent=2
            )
        }
        for name, text in (plan.written | packing).items():
            (staging / name).write_text(text, encoding="utf-8")
        (staging / "bentofile.yaml").write_text(json.dumps(plan.build_file), encoding="utf-8")
        _run_build(staging, home, plan.path.name)
        built = home / plan.path.relative_to(store.absolute())
        # BentoML has just imported the service. What it read there is for the server that does without BentoML.
        schema = yaml.safe_load((built / BENTO_FILE).read_text(encoding="utf-8")).get("schema", {})
        (built / SOURCE_FOLDER / SCHEMA_FILE).write_text(json.dumps(schema), encoding="utf-8")
        return _move(built, plan.path)


def packed_bento(model: Path, config: ServingConfig, store: Path, examples: Examples | None = None) -> Bento | None:
    """Return the Bento that `build_bento` would build, or None if that Bento does not exist.

    Raises:
        UserError: the model is incomplete, altered or not registered.

    """
    return Bento.read(_plan(model, config, store, examples).path)


@dataclass(frozen=True)
class _Plan:
    """Contents of a Bento, and its path in the store."""

    placement: Placement
    files: dict[str, Path]
    written: dict[str, str]
    """text of each generated file, by name"""
    build_file: dict[str, Any]
    path: Path


def _plan(model: Path, config: ServingConfig, store: Path, examples: Examples | None) -> _Plan:
    name, target = config.target_name, load_target(config)
    manifest, runtime = _check_model(model, target, name)
    placement = Placement(target=target, runtime=runtime)
    files = _files(model, runtime)
    # Host and port are chosen when the endpoint starts. The number of examples follows from `examples`.
    settings = config.model_dump_json(indent=2, exclude={"target", "host", "port", "allow_anonymous", "examples"})
    written = {SETTINGS_FILE: settings, PLACEMENT_FILE: placement.model_dump_json(indent=2)}
    written |= {EXAMPLES_FILE: json.dumps(examples, indent=2)} if examples else {}
    build_file = _describe(manifest, name, placement, [*files, *written, PACKING_FILE])
    contents = _hash(files, runtime, written, build_file)
    version = f"{_slug(build_file['labels']['model_version'])}-{name}-{contents}"
    return _Plan(placement, files, written, build_file, store.absolute() / "bentos" / build_file["name"] / version)


@contextmanager
def _staging(scratch: Path) -> Iterator[Path]:
    """Create a build folder: in `scratch`, unless a parent folder is hidden, because BentoML refuses hidden folders."""
    hidden = any(part.startswith(".") for part in scratch.resolve().parts)
    with tempfile.TemporaryDirectory(prefix="convoy-", dir=None if hidden else scratch) as folder:
        yield Path(folder)


def read_packing(bento: Bento) -> Packing:
    """Read how a Bento runs its model."""
    return Packing.model_validate_json((bento.path / SOURCE_FOLDER / PACKING_FILE).read_text(encoding="utf-8"))


def read_placement(bento: Bento) -> Placement:
    """Read what a Bento runs on.

    Raises:
        UserError: an earlier version of Convoy packed the Bento.

    """
    path = bento.path / SOURCE_FOLDER / PLACEMENT_FILE
    if not path.is_file():
        raise UserError(f"{bento.tag} was packed by an earlier version: pack the model again with `convoy package`")
    return Placement.model_validate_json(path.read_text(encoding="utf-8"))


def _check_model(model: Path, target: Target, name: str) -> "tuple[ModelManifest, Runtime]":
    # Imported here, so that listing Bentos does not load numpy.
    from models.exported.predictor import read_model_manifest

    manifest = read_model_manifest(model)
    if manifest.version is None:
        raise UserError(f"the model in {model} has no version: register it before packing it")
    runtime = choose_runtime(manifest, target, name)
    path = model / runtime.model_file
    if not path.is_file():
        raise UserError(f"{path} is missing: export the model again")
    if file_sha256(path) != manifest.files[runtime.model_file]:
        raise UserError(f"{path} is not the file that its manifest describes: export the model again")
    check_memory(model, runtime, target, name)
    return manifest, runtime


def _files(model: Path, runtime: Runtime) -> dict[str, Path]:
    """Return the current path of each file of the Bento, by the file's name in the Bento."""
    from models.exported.predictor import MANIFEST_FILE

    predictor = runtime.predictor.partition(":")[0]
    # One of an installed package comes with the packages of the target.
    modules = (*ENTRIES, *([predictor] if predictor.partition(".")[0] in code.ROOMS else []))
    sources = [*code.closure(*modules).values(), *code.package_data(*modules)]
    return {path.relative_to(code.ROOT).as_posix(): path for path in sources} | {
        f"{MODEL_FOLDER}/{name}": model / name for name in (runtime.model_file, MANIFEST_FILE)
    }


def _describe(manifest: "ModelManifest", target: str, placement: Placement, files: list[str]) -> dict[str, Any]:
    """Return the content of bentofile.yaml."""
    labels = {
        "target": target,
        "precision": placement.runtime.precision,
        "model_name": manifest.name,
        "model_version": manifest.version,
        "run_id": manifest.run_id,
        "data_version": manifest.data_version,
        "git_commit": manifest.git_commit,
    }
    return {
        "service": SERVICE,
        "name": _slug(manifest.name),
        "description": f"{manifest.name} v{manifest.version} ({manifest.network}) for {target}, packed by Convoy",
        "labels": {key: value for key, value in labels.items() if value is not None},
        "include": files,
        # Locking writes the address of a package index into the Bento. `requirements` pins the versions already.
        "python": {"packages": requirements(placement.target), "lock_packages": False},
        "docker": {"python_version": f"{sys.version_info.major}.{sys.version_info.minor}"},
    }


def _hash(files: dict[str, Path], runtime: Runtime, written: dict[str, str], build_file: dict[str, Any]) -> str:
    # The manifest holds the hash of the model file. `_check_model` has compared that hash.
    contents = {
        name: code.meaning(origin) if origin.suffix == ".py" else file_sha256(origin)
        for name, origin in files.items()
        if origin.name != runtime.model_file
    }
    return hashlib.sha256(json.dumps([build_file, written, contents], sort_keys=True).encode()).hexdigest()[:8]


def _slug(text: str) -> str:
    """Turn `text` into a valid name, or a valid start of a version, for BentoML."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "model"


def _run_build(staging: Path, home: Path, version: str) -> None:
    """Build in a subprocess, because BentoML changes the working directory, module path and logging of its process."""
    home.mkdir()
    environment = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}
    command = [sys.executable, "-m", "bentoml", "build", "--version", version, "--output", "tag", str(staging)]
    result = subprocess.run(
        command, cwd=staging, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    logger.debug("bentoml build: %s%s", result.stdout, result.stderr)
    if result.returncode != 0:
        last = " ".join((result.stderr or result.stdout).split())[-500:]
        raise UserError(f"BentoML could not pack the model: {last}", exit_code=1)


def _move(built: Path, path: Path) -> Bento:
    """Move a finished Bento into the store in one step. The Bento replaces a damaged one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if Bento.read(path) is None:
        shutil.rmtree(path, ignore_errors=True)
        built.rename(path)
        latest = built.parent / "latest"
        latest.replace(path.parent / "latest")
    bento = Bento.read(path)
    if bento is None:
        raise UserError(f"{path} cannot be read back: remove it and pack the model again", exit_code=1)
    return bento
