"""An endpoint keeps what its OpenAPI description promises, as Schemathesis asks for it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_serving_classifier import make_model

from serving.config import ServingConfig
from serving.endpoint.auth import TOKENS, new_token
from serving.packaging.bento import build_bento
from serving.packaging.local_endpoint import Endpoint

# No schema says which bytes are an image, or which classes a model has: these are refused although they fit.
CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "413", "422"]

[parameters]
"path.name" = "Strongest Color"
"path.version" = "3"
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "paths",
    # A path with a version answers as that without one.
    [["--exclude-path-regex", "^/v2"], ["--include-path-regex", "^/v2", "--exclude-path-regex", "versions"]],
    ids=["ours", "open inference protocol"],
)
def test_schemathesis_finds_nothing(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    token, line = new_token("schemathesis")
    monkeypatch.setenv(TOKENS, line)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    bento = build_bento(make_model(tmp_path / "model"), ServingConfig(max_body_mb=1), tmp_path / "store")
    with Endpoint(bento, is_public=True) as endpoint:
        command = [
            Path(sys.executable).with_name("st"), "--config-file", "schemathesis.toml", "run",
            f"{endpoint.url}/openapi.json", "--header", f"Authorization: Bearer {token}",
            "--max-examples", "50", "--generation-deterministic", "--no-color", *paths,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = re.findall(r"Selected: (\d+)/\d+\n +Tested: (\d+)\n", done.stdout)
    assert len(set(found)) == 1, done.stdout
