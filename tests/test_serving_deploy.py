"""Deploying and rolling back with a real engine, a real gateway, and small images in place of models."""

import threading
import time

import pytest
from rollouts import Load, Stack

from data.errors import UserError
from serving import ledger
from serving.deploy import roll_back, roll_out

pytestmark = pytest.mark.docker


@pytest.fixture
def stack(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Stack(tmp_path) as stack:
        yield stack


def deploy(stack, release, percent=None, **rollout):
    return roll_out(stack.site(**rollout), release, why="a test", figures={"test/accuracy": 0.9}, percent=percent)


def written(stack):
    return [(entry.what, entry.to and entry.to.model_version) for entry in ledger.read(stack.ledger)]


def test_a_rollout_and_a_rollback_under_load_lose_no_request(stack):
    one, two = stack.build("1"), stack.build("2")
    deploy(stack, one)
    with Load(stack.port) as load:
        time.sleep(1)
        slow = threading.Thread(target=lambda: answers.append(stack.ask("/slow")))
        answers: list = []
        slow.start()
        entry = deploy(stack, two)
        time.sleep(1)
        back = roll_back(stack.site(), "it is worse")
        time.sleep(1)
        slow.join()
    assert load.failed == []
    assert min(load.answered["1"], load.answered["2"]) > 100
    assert sum(load.answered.values()) > 1000
    assert answers[0][:2] == (200, answers[0][1] | {"version": "1"}), "in flight when its classifier was replaced"
    assert (entry.before, entry.to, entry.figures) == (one, two, {"test/accuracy": 0.9})
    assert (back.before, back.to, back.why) == (two, one, "it is worse")
    assert written(stack) == [("deploy", "1"), ("deploy", "2"), ("rollback", "1")]
    assert [container.release for container in stack.containers()] == [one]
    assert f"CONVOY_CPU_IMAGE={one.image}\n" in (stack.folder / ".env").read_text()
    with pytest.raises(UserError, match="nothing to roll cpu back to: stub v1"):
        roll_back(stack.site(), "again")
