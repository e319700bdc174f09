import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Imported here, as Hypothesis would import itself for pytest's summary: CPython before 3.11.8 fails to parse a module
# (gh-106905) where garbage like that of Dask's connections, which have finalizers in Python, is collected meanwhile.
import hypothesis  # noqa: F401
import numpy as np
import pytest
from houses import sources
from PIL import Image

from core import code
from core.machine import num_cores

if TYPE_CHECKING:
    from models.training.job import TrainingJob

# Whoever runs the tests may have servers, profiles and tokens of their own: the tests must neither use nor fill them.
FOREIGN = ("BENTOML_", "CONVOY_TOKENS", "DVC_", "GIT_", "MLFLOW_", "PREFECT_")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module is imported, because these libraries read theirs at import."""
    # What a shell runs in the background is deaf to Ctrl-C, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = Path(tempfile.mkdtemp(prefix="convoy-tests-"))
    config.add_cleanup(partial(shutil.rmtree, home, ignore_errors=True))
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        del os.environ[name]
    os.environ.update(
        PREFECT_HOME=f"{home}/prefect",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        # Prefect's temporary server misses its own limit of 20 s on a busy machine of two cores.
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
        BENTOML_HOME=f"{home}/bentoml",
        DVC_GLOBAL_CONFIG_DIR=f"{home}/dvc",
        DVC_SYSTEM_CONFIG_DIR=f"{home}/dvc-system",
        DVC_SITE_CACHE_DIR=f"{home}/dvc-cache",
        DVC_NO_ANALYTICS="true",
        ITERATIVE_DO_NOT_TRACK="true",
        MLFLOW_DISABLE_TELEMETRY="true",
        # BentoML and MLflow understand nothing but "true" here; to them, "1" means go on tracking.
        BENTOML_DO_NOT_TRACK="true",
        DO_NOT_TRACK="true",
        # A commit in a test's repository needs an author, which a build machine has not.
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        **{f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in AUTHOR.items()},
    )
    if num_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        # They share the cores: of more threads than cores, each waits for the others.
        os.environ["OMP_NUM_THREADS"] = str(max(1, num_cores() // num_processes))
    # The one way to keep DVC from asking its home page for a newer version.
    (home / "dvc").mkdir()
    (home / "dvc" / "config").write_text("[core]\n    check_update = false\n")


AUTHOR = {"NAME": "Convoy's tests", "EMAIL": "tests@convoy.invalid"}


def draw_classes(folder: Path, classes: Sequence[str], per_class: int, size: int = 24) -> Path:
    """Fill `folder` with <class>/*.png: stripes of another direction and colour for each class, and noise."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            phase = np.arange(size) + rng.integers(size)
            stripes = (phase // (2 + index) % 2)[:, None] * np.ones(size, dtype=int)
            pixels = rng.integers(0, 60, (size, size, 3))
            pixels[..., index % 3] += 180 * (stripes if index % 2 else stripes.T)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _our_log() -> Iterator[None]:
    """Leave the log as it was: a command takes it for itself, and the next test may want to hear it."""
    log = logging.getLogger("convoy")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder as a user has it after cloning, and go there."""
    root = Path(__file__).resolve().parents[1]
    folder = tmp_path / "workspace"
    (folder / "data").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "-qm", "workspace"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    # A workspace keeps its own runs and Bentos; MLflow writes the address that a test gave it into the environment.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    return folder


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy our sources to a folder, and let keys be made from the copy."""
    folder = tmp_path / "house"
    for path in sources(*code.ROOMS):
        target = folder / path.relative_to(code.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    monkeypatch.setattr(code, "ROOT", folder)
    return folder


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip where no Docker engine answers."""
    from core.errors import UserError
    from serving.rollout.docker import docker

    try:
        docker("version", "--format", "{{.Server.Version}}", timeout=30)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare three classes of 40 images at 24 px, once; tests read it only."""
    from data.config import DataConfig
    from data.ingest.stage import ingest
    from data.preparing.stage import prepare

    folder = tmp_path_factory.mktemp("data")
    config = DataConfig(source="folder", path=draw_classes(folder / "photos", ["cat", "dog", "emu"], 40), size=24)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


def tiny_job(prepared: Path, network: str = "lenet5", **training: Any) -> "TrainingJob":
    """Make a training of three epochs on `prepared` that takes a second, the same on every CPU."""
    from data.config import AugmentationConfig
    from models.config import ModelConfig, TrainingConfig
    from models.training.job import TrainingJob

    plain = {"precision": "fp32", "channels_last": False, "accelerator": "cpu"}
    options = {"max_epochs": 3, "batch_size": 16} | plain | training
    model = ModelConfig.model_validate({"network": network, "input_size": 20})
    return TrainingJob(prepared, "d" * 32, model, AugmentationConfig(), TrainingConfig.model_validate(options))
