import json
import socket

import pytest
from test_pipelines_commands import convoy, told

from pipelines import doctor
from serving.rollout.ledger import Entry, append


def found(*arguments):
    return {one["name"]: one for one in json.loads(convoy("doctor", "--json", *arguments).stdout)}


def test_a_workspace_that_is_well(workspace):
    findings = found()
    assert {one["state"] for one in findings.values()} <= {"ok", "note"}
    assert {"Python", "packages", "git", "disk", "memory", "GPU", "port", "DVC remote", "Docker", "clock"} <= set(
        findings
    )
    assert findings["packages"]["says"].endswith("as the tool asks for")
    assert findings["DVC remote"]["says"].endswith("outputs/dvc-remote")
    assert convoy("doctor").stdout.splitlines()[0].startswith("ok     Python       3.")


def test_what_is_wrong_is_named_with_its_remedy(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(doctor, "MIN_DISK", 1e18)
    (workspace / ".git").rename(workspace / "git")
    path = workspace / "outputs" / "ledger.jsonl"
    for why in ("first", "second"):
        append(path, Entry(what="deploy", target="cpu", why=why))
    path.write_text(path.read_text().replace("first", "other"))
    result = convoy("doctor")
    assert told(result, 1) == "convoy: doctor: git, disk, MLflow, ledger: see above how to mend"
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if line.startswith("fault")}
    assert "git init" in lines["git"]
    assert "free some space" in lines["disk"]
    assert "127.0.0.1:9 does not answer" in lines["MLflow"]
    assert "unset MLFLOW_TRACKING_URI" in lines["MLflow"]
    assert "does not follow line 1" in lines["ledger"]


def test_a_port_in_use_and_a_clock_that_is_behind(workspace):
    append(workspace / "outputs" / "ledger.jsonl", Entry(what="deploy", why="later", when="2999-01-01T00:00:00Z"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = convoy("doctor", "--set", f"serving.port={port}")
    assert f"{port} is in use (serving)  -> stop what listens there" in result.stdout
    assert told(result, 1).startswith("convoy: doctor: clock")


@pytest.mark.parametrize("url", ["s3://bucket/data", None])
def test_other_remotes(workspace, url):
    (workspace / ".dvc" / "config").write_text(
        f"[core]\n    remote = x\n['remote \"x\"']\n    url = {url}\n" if url else ""
    )
    finding = found()["DVC remote"]
    assert finding["state"] == ("ok" if url else "note")
    assert finding["says"].startswith(url or "none")
