"""A real MLflow server that is killed, and trainings that are: what is sent arrives once."""

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest

from core.errors import UserError
from models.tracking.journal import Journal
from models.tracking.runs import Tracking
from models.tracking.sender import Sender
from pipelines.prefect_server import HOST, free_port

pytestmark = pytest.mark.slow


class Server:
    """An MLflow server on a database of its own, killed and started again on one port."""

    def __init__(self, folder):
        self.folder, port = folder, str(free_port())
        self.url = f"http://{HOST}:{port}"
        place = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            f"{folder}/artifacts",
        ]
        self.command = [sys.executable, "-m", "mlflow", "server", *place, "--host", HOST, "--port", port]
        self.command += ["--workers", "1"]
        self.start()
        self.wait()

    def start(self):
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)

    def wait(self):
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self):
        """The server and its workers, which are alone in their process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture
def server(one_server, monkeypatch):
    """Give the server of the tests before, which may have left it starting."""
    # As the command sets it: pipelines/settings.py.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    one_server.wait()
    return one_server


def arrived(tracking, run_id):
    points = tracking.client.get_metric_history(run_id, "loss")
    return Counter((point.step, point.value) for point in points)


def expected(num_steps):
    return Counter((step, step / 7) for step in range(num_steps))


class Frequent(Sender):
    interval = 0.05
    patience = 60
    grace = 0.5


def test_a_server_killed_while_metrics_arrive_has_each_of_them_once_when_it_is_back(server, tmp_path, caplog):
    caplog.set_level(logging.INFO, "convoy")
    tracking = Tracking(server.url, "tests", None)
    num_steps = 0

    def train(seconds):
        nonlocal num_steps
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            journal.append({"loss": num_steps / 7}, num_steps)
            num_steps += 1
            time.sleep(0.001)

    with tracking.open_run(None, "run", None) as log:
        journal = Journal(tmp_path / "journal")
        with Frequent(journal, log):
            for _ in range(2):
                train(0.7)
                server.kill()
                train(1.5)
                server.start()
                train(0.2)
                server.wait()
            train(1)
    assert num_steps > 1000
    assert arrived(tracking, log.run_id) == expected(num_steps)
    lines = [record.message for record in caplog.records if record.name == "convoy"]
    assert 2 <= len(lines) <= 5
    assert lines[0].startswith(f"train: MLflow at {server.url}")
    assert lines[0].endswith("; the training goes on, and its metrics wait on disk")
    assert "train: MLflow answers again, and takes the metrics that have waited" in lines


TRAINING = """
import sys, time
from pathlib import Path
from models.tracking.journal import Journal
from models.tracking.sender import Sender
from models.tracking.runs import Tracking

class Frequent(Sender):
    interval = 0.02

url, run_id, path, first, last = sys.argv[1:]
with Tracking(url, "tests", None).open_run(run_id, "run", None) as log:
    journal = Journal(Path(path), log.last_steps())
    with Frequent(journal, log):
        print("ready", flush=True)
        for step in range(int(first), int(last)):
            journal.append({"loss": step / 7}, step)
            time.sleep(0.001)
"""


def test_a_training_killed_at_any_step_and_resumed_some_steps_back_doubles_and_loses_nothing(server, tmp_path):
    tracking, path = Tracking(server.url, "tests", None), tmp_path / "journal"
    with tracking.open_run(None, "run", None) as log:
        pass
    start, num_steps = 0, 3000
    for seconds in (0.05, 0.31, 0.62):
        child = train_from(server, log.run_id, path, start, num_steps)
        time.sleep(seconds)
        child.kill()
        child.communicate()
        kept = [point.step for line in Journal(path).read(0) for point in line.points]
        assert len(kept) == kept[-1] + 1 < num_steps
        start = max(0, kept[-1] + 1 - 40)
    child = train_from(server, log.run_id, path, start, num_steps)
    assert child.wait(120) == 0
    child.communicate()
    assert arrived(tracking, log.run_id) == expected(num_steps)
    assert tracking.client.get_run(log.run_id).info.status == "FINISHED"


def train_from(server, run_id, path, first, last):
    arguments = [server.url, run_id, str(path), str(first), str(last)]
    child = subprocess.Popen([sys.executable, "-c", TRAINING, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_server_that_is_gone_for_good_costs_a_bounded_time_and_the_second_attempt_sends_the_rest(server, tmp_path):
    tracking, path = Tracking(server.url, "tests", None), tmp_path / "journal"
    runs, moments = [], []

    def train(killed):
        with tracking.open_run(runs[0] if runs else None, "run", None) as log:
            runs.append(log.run_id)
            journal = Journal(path, log.last_steps())
            with Frequent(journal, log) as sender:
                sender.patience = 3
                for step in range(50):
                    journal.append({"loss": step / 7}, step)
                time.sleep(0.5)
                if killed:
                    server.kill()
                    moments.append(time.monotonic())
                for step in range(50, 100):
                    journal.append({"loss": step / 7}, step)

    with pytest.raises(UserError, match=r"does not answer .* lines of metrics wait in .*journal, and the same command"):
        train(killed=True)
    assert time.monotonic() - moments[0] < 10
    with pytest.raises(UserError, match="does not answer"):
        Tracking(server.url, "tests", None)
    server.start()
    server.wait()
    assert tracking.is_resumable(runs[0])
    train(killed=False)
    assert arrived(tracking, runs[0]) == expected(100)


def test_an_interrupted_run_whose_server_is_away_is_not_taken_for_one_that_does_not_exist(server, monkeypatch):
    tracking = Tracking(server.url, "tests", None)
    assert not tracking.is_resumable("0" * 32)
    assert not tracking.is_resumable("")
    server.kill()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow at http"):
        tracking.is_resumable("0" * 32)
    server.start()
