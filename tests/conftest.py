import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

# Whoever runs the tests may have servers, profiles and tokens of their own: the tests must neither use nor fill them.
FOREIGN = ("BENTOML_", "DVC_", "GIT_", "MLFLOW_", "PREFECT_")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module is imported, because these libraries read theirs at import."""
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
    # The one way to keep DVC from asking its home page for a newer version.
    (home / "dvc").mkdir()
    (home / "dvc" / "config").write_text("[core]\n    check_update = false\n")


AUTHOR = {"NAME": "Convoy's tests", "EMAIL": "tests@convoy.invalid"}
