import logging
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from models.tracking.journal import Journal
from models.tracking.sender import Sender


class Impatient(Sender):
    interval = 0.01
    patience = 0.5
    grace = 0.1


class Server:
    """Keeps what it is sent. Each entry of `faults` is one request: None, or what happens to it."""

    def __init__(self, faults=()):
        self.points, self.batches, self.faults = [], [], list(faults)

    def last_steps(self):
        self.meet(None)
        return {point.name: point.step for point in self.points}

    def send(self, points):
        fault = self.faults[0] if self.faults else None
        if fault == "lost answer":
            self.points += points
        self.meet("lost answer")
        self.points += points
        self.batches.append(len(points))

    def meet(self, instead):
        if self.faults and self.faults.pop(0):
            raise UserError("MLflow at http://localhost does not answer")

    def received(self):
        return Counter((point.name, point.step) for point in self.points)


def once(name, steps):
    return Counter((name, step) for step in steps)


def send(journal, server, training=lambda _: None):
    with Impatient(journal, server) as sender:
        training(sender)


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def messages(caplog):
    return [record.message for record in caplog.records if record.name == "convoy"]


@pytest.fixture
def journal(tmp_path, caplog):
    caplog.set_level(logging.INFO, "convoy")
    return Journal(tmp_path / "journal")


def test_all_arrives_in_few_requests(journal, caplog):
    server = Server()
    for step in range(2500):
        journal.append({"loss": 0.5}, step)
    with Impatient(journal, server):
        wait_until(lambda: len(server.points) == 2500)
        journal.append({"loss": 0.5}, 2500)
    assert server.received() == once("loss", range(2501))
    assert server.batches == [1000, 1000, 500, 1]
    assert messages(caplog) == []


def test_what_has_arrived_before_is_left_out(journal):
    server = Server()
    for last in (3, 6):
        with Impatient(journal, server):
            for step in range(last):
                journal.append({"loss": 0.5}, step)
    assert server.received() == once("loss", range(6))


def test_a_server_that_goes_away_and_comes_back_is_told_in_two_lines(journal, caplog):
    server = Server([None, None, *["away"] * 4, None, None, "lost answer", *["away"] * 2])
    num_steps = 0
    with Impatient(journal, server):
        while server.faults:
            journal.append({"loss": 0.5}, num_steps)
            num_steps += 1
            time.sleep(0.002)
    assert server.received() == once("loss", range(num_steps))
    # Away twice: at first, and when the answer to what had arrived was lost.
    assert [line for line in messages(caplog) if "waiting up to" not in line] == 2 * [
        "train: MLflow at http://localhost does not answer; the training goes on, and its metrics wait on disk",
        "train: MLflow answers again, and takes the metrics that have waited",
    ]


def test_a_server_that_stays_away_fails_the_step_in_bounded_time_and_a_second_attempt_sends_the_rest(journal, caplog):
    for step in range(3):
        journal.append({"loss": 0.5}, step)
    started = time.monotonic()
    with pytest.raises(UserError, match="not answer; the training is kept, 3 lines of metrics wait in") as error:
        send(journal, Server(["away"] * 1000))
    assert 0.5 <= time.monotonic() - started < 10
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    assert len([line for line in messages(caplog) if "does not answer" in line]) == 1
    server = Server()
    send(Journal(journal.path), server)
    assert server.received() == once("loss", range(3))


def test_a_stopped_training_is_not_held_up_by_a_server_that_is_away(journal):
    journal.append({"loss": 0.5}, 1)
    moments = []

    def stop(sender):
        wait_until(lambda: sender._problem)
        moments.append(time.monotonic())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(journal, Server(["away"] * 1000), stop)
    assert time.monotonic() - moments[0] < 1


def test_a_stopped_training_still_sends_what_it_has(journal):
    server = Server()

    def stop(_):
        journal.append({"loss": 0.5}, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(journal, server, stop)
    assert server.received() == once("loss", [1])


def test_a_request_without_an_end_does_not_hold_up_the_training_and_its_metrics_wait(journal, caplog):
    server = Server()
    server.send = lambda points: time.sleep(2)
    started = time.monotonic()
    with Impatient(journal, server) as sender:
        journal.append({"loss": 0.5}, 1)
    assert time.monotonic() - started < 1.9
    assert sender.has_left
    assert f"1 lines wait in {journal.path}, and the next command sends them" in caplog.text
    sender._thread.join()
    server = Server()
    Sender(Journal(journal.path), server).send_now()
    assert server.received() == once("loss", [1])


def test_a_server_that_is_away_at_the_end_is_waited_for_and_that_is_told(journal, caplog, monkeypatch):
    monkeypatch.setattr(Impatient, "patience", 60)
    monkeypatch.setattr(Impatient, "reminder", 0.1)
    server = Server(["away"] * 40)
    with Impatient(journal, server) as sender:
        journal.append({"loss": 0.5}, 1)
    assert not sender.has_left
    assert server.received() == once("loss", [1])
    assert sum("waiting up to" in line for line in messages(caplog)) >= 2


def test_a_mistake_of_ours_is_not_hidden(journal):
    with pytest.raises(ZeroDivisionError), Impatient(journal, Server(), lambda: {"cpu": 1 / 0}):
        time.sleep(0.1)


def test_samples_are_taken_while_the_server_is_away_too_and_go_on_where_they_ended(journal):
    server = Server(["away"] * 5)
    for _ in range(2):
        with Impatient(journal, server, lambda: {"cpu": 50.0}):
            time.sleep(0.2)
    steps = [point.step for point in server.points]
    assert steps == list(range(len(steps)))
    assert len(steps) > 4


NUM_STEPS = 20
FAULT = st.sampled_from([None, "away", "lost answer"])


@settings(max_examples=40, deadline=None)
@given(
    kills=st.lists(st.tuples(st.integers(0, NUM_STEPS), st.integers(0, 5), st.lists(FAULT, max_size=4)), max_size=4),
    cut=st.integers(0, 30),
)
def test_killed_and_resumed_with_any_faults_each_point_arrives_once(tmp_path_factory, kills, cut):
    """A kill may leave the last line half-written, and what the thread has sent unconfirmed."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    server, start = Server(), 0
    for stop, steps_back, faults in kills:
        server.faults = faults
        sender = Sender(Journal(path), server)
        for step in range(start, stop):
            sender._journal.append({"loss": step / 7}, step)
            if step % 3 == 0:
                sender._send_rest()
        content = path.read_bytes()
        path.write_bytes(content[: max(sender._offset, len(content) - cut)])
        kept = [point.step for line in Journal(path).read(0) for point in line.points]
        start = max(0, max(kept, default=-1) + 1 - steps_back)
    server.faults = []
    sender = Sender(Journal(path), server)
    for step in range(start, NUM_STEPS):
        sender._journal.append({"loss": step / 7}, step)
    assert sender._send_rest()
    assert server.received() == once("loss", range(NUM_STEPS))
