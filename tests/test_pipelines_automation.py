"""What starts by itself: schedules, the watched folder, events from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import draw_classes

from core.errors import UserError
from pipelines.commands.up import check_schedules
from pipelines.config import Config, load_config, override
from pipelines.explain import Step
from pipelines.operations import automatic
from pipelines.operations.automatic import count_run, reasons_to_run
from pipelines.operations.watch import Watch, watching
from pipelines.prefect_server import free_port
from pipelines.session import SERVERS_FILE
from pipelines.workspace import LEDGER
from serving.rollout import ledger
from serving.rollout.ledger import Entry


def with_schedules(tmp_path: Path, *schedules: dict[str, object]) -> Config:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"automation": {"schedules": schedules}}))
    return load_config(path)


@pytest.mark.parametrize("line", ["0 3 * * *", "*/15 8-18 * * mon-fri", "0 0 1,15 jan-mar 7", "5/10 * * * *"])
def test_a_cron_line(tmp_path, line):
    assert with_schedules(tmp_path, {"name": "nightly", "cron": line}).automation.schedules[0].cron == line


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"cron": "every night"},
            r"params.yaml: automation.schedules = .*'every night' is no cron line: expected five",
        ),
        ({"cron": "0 25 * * *"}, "'25' is not between 0 and 23"),
        ({"cron": "0 5-3 * * *"}, "'5-3' is not between"),
        ({"cron": "*/0 * * * *"}, r"'\*/0' is not between"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "no time zone 'Mars/Olympus' is known"),
        ({"cron": "0 3 * * *", "every_minutes": 5}, "nightly: give either cron or every_minutes"),
        ({}, "nightly: give either cron or every_minutes"),
        ({"cron": "0 3 * * *", "zone": "UTC"}, "automation.schedules: unknown key zone"),
    ],
)
def test_a_schedule_that_is_none(tmp_path, schedule, message):
    with pytest.raises(UserError, match=message):
        with_schedules(tmp_path, {"name": "nightly", **schedule})


def test_two_schedules_of_one_name(tmp_path):
    nightly = {"name": "nightly", "cron": "0 3 * * *"}
    with pytest.raises(UserError, match="two schedules have the name nightly"):
        with_schedules(tmp_path, nightly, nightly)


def test_an_override_of_a_schedule_is_checked_before_anything_starts(tmp_path):
    config = with_schedules(tmp_path, {"name": "n", "every_minutes": 5, "overrides": ["training.max_epochz=3"]})
    with pytest.raises(UserError, match=r"automation.schedules, n: --set: unknown key training.max_epochz"):
        check_schedules(config)


def test_watching_needs_a_folder():
    with pytest.raises(UserError, match=r"automation.watch looks at data.path, which is null"):
        override(Config(), ["automation.watch=true"])


@pytest.fixture
def watched(tmp_path) -> tuple[Watch, Path, list[str]]:
    folder, started = draw_classes(tmp_path / "photos", ["cat", "dog"], 2), list[str]()
    config = override(Config(), ["data.source=folder", f"data.path={folder}", "automation.watch=true"])
    return Watch(config, lambda: started.append("run")), folder, started


def test_files_that_come_together_are_one_run(watched):
    watch, folder, started = watched
    watch.look()
    assert started == [], "it may be changing"
    watch.look()
    watch.look()
    assert started == ["run"], "nobody looked before"
    for number in range(10):
        shutil.copy(folder / "cat" / "0.png", folder / "cat" / f"new{number}.png")
        watch.look()
    assert started == ["run"]
    watch.look()
    watch.look()
    assert started == ["run"] * 2


def test_a_folder_that_vanishes_is_told_once_and_looked_at_again(watched, caplog):
    watch, folder, started = watched
    folder.rename(folder.with_name("away"))
    for _ in range(3):
        watch.look()
    assert caplog.text.count("it is looked at again") == 1
    folder.with_name("away").rename(folder)
    watch.look()
    watch.look()
    assert started == ["run"]


def test_a_server_that_is_away_is_asked_again(watched):
    watch, _, _ = watched
    answers = [UserError("away"), None]

    def start() -> None:
        if error := answers.pop(0):
            raise error

    watch._start = start
    for _ in range(4):
        watch.look()
    assert answers == []


def test_what_is_not_to_be_watched_starts_no_thread():
    with watching(Config(), lambda: pytest.fail("called")):
        pass


def test_no_more_runs_in_a_day_than_allowed(workspace):
    assert [count_run(2) for _ in range(4)] == [True, True, False, False]
    yesterday = time.time() - 25 * 3600
    automatic.RUNS_FILE.write_text(json.dumps([yesterday, yesterday]))
    assert count_run(1)
    automatic.RUNS_FILE.write_text("cut o")
    assert count_run(1)
    assert not count_run(0)


def test_a_run_that_would_repeat_itself_is_none(workspace, monkeypatch):
    steps = [Step("prepare", "skipped", "the same"), Step("gate", "runs", "v1 is"), Step("package", "runs", "after")]
    monkeypatch.setattr(automatic, "explain", lambda _: steps)
    assert reasons_to_run(Config()) == ["gate: v1 is", "package: after"]
    ledger.append(LEDGER, Entry(what="refuse", why="gate"))
    assert reasons_to_run(Config()) == []
    steps[0] = Step("prepare", "runs", "the source has changed")
    assert reasons_to_run(Config())[0] == "prepare: the source has changed"


def call(url: str, content: object) -> object:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or "null")


def messages(url: str, count: int) -> list[str]:
    """What the runs of run-if-changed have ended with, when there are so many."""
    deadline = time.monotonic() + 120
    while True:
        runs = call(f"{url}/flow_runs/filter", {"flows": {"name": {"any_": ["run-if-changed"]}}})
        ended = [run["state"]["message"] for run in runs if run["state_type"] == "COMPLETED"]
        if len(ended) >= count:
            assert len(runs) == count
            return ended
        assert time.monotonic() < deadline, runs
        time.sleep(0.5)


@pytest.mark.slow
def test_a_file_and_five_events_start_one_run_each(workspace, tmp_path):
    folder = draw_classes(tmp_path / "photos", ["cat", "dog"], 5)
    automation = {
        "watch": True,
        "watch_seconds": 1,
        "max_runs_per_day": 0,
        "schedules": [{"name": "nightly", "cron": "0 3 * * *", "overrides": ["training.max_epochs=3"]}],
    }
    data = {"source": "folder", "path": str(folder), "size": 24}
    Path("params.yaml").write_text(json.dumps({"automation": automation, "data": data}))
    command = [sys.executable, "-c", "from pipelines.commands.main import main; main()", "up"]
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    with Path("up.log").open("w") as log:
        often = os.environ | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        up = subprocess.Popen([*command, *ports], stdout=log, stderr=subprocess.STDOUT, env=often)
        try:
            while not SERVERS_FILE.is_file():
                assert up.poll() is None, Path("up.log").read_text()
                time.sleep(0.2)
            url = json.loads(SERVERS_FILE.read_text())["prefect_api_url"]
            messages(url, 1)
            for number in range(2):
                shutil.copy(folder / "cat" / "0.png", folder / "cat" / f"new{number}.png")
            messages(url, 2)
            resource = {"prefect.resource.id": "photos"}
            for _ in range(5):
                event = {"event": "convoy.data-changed", "resource": resource, "payload": {}, "id": str(uuid4())}
                call(f"{url}/events", [event | {"occurred": datetime.now(UTC).isoformat()}])
            ended = messages(url, 3)
            assert all(
                one.startswith("automation.max_runs_per_day is reached; left for later: ingest:") for one in ended
            )
            (nightly,) = call(f"{url}/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
            assert nightly["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
            assert nightly["parameters"]["config"]["training"]["max_epochs"] == 3
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(60)
