"""Deploying and rolling back with a real engine, a real gateway, and small images in place of models."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rollouts import Load, Stack, wait_for

from core.errors import UserError
from serving.rollout import ledger
from serving.rollout.deploy import roll_back, roll_out

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One for all tests, each of which deploys what it begins with."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def one(stack):
    release = stack.build("1")
    deploy(stack, release)
    stack.ledger.unlink(missing_ok=True)
    return release


def deploy(stack, release, percent=None, **rollout):
    return roll_out(stack.site(**rollout), release, why="a test", figures={"test/accuracy": 0.9}, percent=percent)


def written(stack):
    """What the test has brought into the ledger, less that it found version 1 live."""
    entries = [(entry.what, entry.to and entry.to.model_version) for entry in ledger.read(stack.ledger)]
    assert entries[0] == ("deploy", "1")
    return entries[1:]


def live(stack):
    return [container.release.model_version for container in stack.containers()]


def test_a_rollout_and_a_rollback_under_load_lose_no_request(stack, one):
    two, answers = stack.build("2"), []
    with Load(stack.port) as load:
        time.sleep(1)
        slow = threading.Thread(target=lambda: answers.append(stack.ask("/slow")))
        slow.start()
        entry = deploy(stack, two)
        time.sleep(1)
        back = roll_back(stack.site(), "it is worse")
        time.sleep(1)
        slow.join()
    assert load.failed == []
    assert min(load.answered["1"], load.answered["2"]) > 100
    assert sum(load.answered.values()) > 1000
    assert (answers[0][0], answers[0][1]["model"]["version"]) == (200, "1"), (
        "in flight when its classifier was replaced"
    )
    assert (entry.before, entry.to, entry.figures) == (one, two, {"test/accuracy": 0.9})
    assert (back.before, back.to, back.why) == (two, one, "it is worse")
    assert written(stack) == [("deploy", "2"), ("rollback", "1")]
    assert live(stack) == ["1"]
    assert f"CONVOY_CPU_IMAGE={one.image}\n" in (stack.folder / ".env").read_text()
    with pytest.raises(UserError, match="nothing to roll cpu back to: stub v1"):
        roll_back(stack.site(), "again")


def test_what_is_live_is_not_deployed_again(stack, one):
    assert deploy(stack, one) is None
    assert written(stack) == []


def test_a_good_canary_is_promoted(stack, one):
    with Load(stack.port) as load:
        entry = deploy(stack, stack.build("2"), percent=40)
    assert load.failed == []
    assert written(stack) == [("canary", "2"), ("promote", "2")]
    assert entry.figures["canary/requests"] >= 100
    assert entry.figures["canary/failure_rate"] == 0
    # 40 % of the requests, plus or minus five standard deviations
    share = entry.figures["canary/requests"] / (entry.figures["canary/requests"] + entry.figures["stable/requests"])
    assert share == pytest.approx(0.4, abs=0.18)
    assert stack.ask()[1]["model"]["version"] == "2"
    assert live(stack) == ["2"]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [({"fails": 0.5}, "it fails more often: "), ({"seconds": 0.1}, "it is slower: median 1")],
)
def test_a_bad_canary_is_withdrawn(stack, one, behaviour, reason):
    bad = stack.build("3", **behaviour)
    with Load(stack.port) as load:
        with pytest.raises(UserError, match=reason):
            deploy(stack, bad, percent=40)
        before = load.answered["3"]
        time.sleep(0.5)
        assert load.answered["3"] == before, "it gets no more requests"
    assert {failure[1] for failure in load.failed} <= {500}
    assert written(stack) == [("canary", "3"), ("withdraw", "3")]
    assert live(stack) == ["1"]


def test_a_canary_without_requests_is_withdrawn(stack, one):
    with pytest.raises(UserError, match=r"too few requests to judge it by: 0 requests in \d s, 100 were wanted"):
        deploy(stack, stack.build("2"), percent=50, canary_max_seconds=2)
    assert live(stack) == ["1"]


@pytest.mark.parametrize(
    ("ready", "reason", "seconds"),
    [
        ("no", "is not healthy|was not ready after 5 seconds", 5),
        ("never", "-cpu-[0-9]+ cannot serve its model", 3600),
        ("never starts", "ended before it was ready:\n(.*\n)*the model is broken", 5),
    ],
)
def test_a_candidate_that_is_not_ready_never_gets_a_request(stack, one, ready, reason, seconds):
    with Load(stack.port) as load, pytest.raises(UserError, match=reason):
        deploy(stack, stack.build("4", ready=ready), ready_seconds=seconds)
    assert load.failed == []
    assert load.answered.keys() == {"1"}
    assert written(stack) == [("failed", "4")]
    assert live(stack) == ["1"]


def test_a_classifier_that_dies_comes_back_and_is_found_again(stack, one):
    status, problem, headers = stack.ask("/die")
    assert (status, problem["error"], headers["Retry-After"]) == (502, "unavailable", "2")
    wait_for(lambda: stack.ask()[0] == 200)
    assert [container.num_restarts for container in stack.containers()] == [1]


def test_what_was_deployed_is_there_again_after_the_stack_was_down(stack, one):
    two = stack.build("2")
    deploy(stack, two)
    for action in (["down", "--timeout=1"], ["up", "--detach", "--wait", "cpu", "gateway"]):
        subprocess.run(
            ["docker", "compose", "--profile=cpu", *action], cwd=stack.folder, check=True, capture_output=True
        )
    # Its number, and so its name, is another one.
    assert [container.name.rpartition("-")[2] for container in stack.containers()] == ["1"]
    assert stack.ask()[1]["model"]["version"] == "2"


def test_of_two_deployments_at_once_the_second_is_refused(stack, one):
    site, two = stack.site(), stack.build("2")
    with site.locked(), pytest.raises(UserError, match="another command deploys or rolls back"):
        deploy(stack, two)
    deploy(stack, two)
    assert live(stack) == ["2"]


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from rollouts import site
from serving.rollout.containers import read_release
from serving.rollout.deploy import roll_out
percent = float(sys.argv[3]) or None
roll_out(site(Path()), read_release(sys.argv[2], "cpu"), why="a test", figures={}, percent=percent)
"""


def stop_half_way(stack, release, percent, number):
    """Deploy in a process that gets a signal: when its canary is in the ledger, or else when its container is there."""
    arguments = [str(Path(__file__).parent), release.image, str(percent)]
    command = [sys.executable, "-c", COMMAND, *arguments]
    with subprocess.Popen(command, cwd=stack.folder, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: len(stack.containers()) == 2 and (not percent or ("canary", "2") in written(stack)))
        process.send_signal(number)


@pytest.mark.parametrize("percent", [0, 50])
def test_what_a_killed_deployment_has_left_is_put_in_order(stack, one, percent):
    with Load(stack.port, num_clients=2) as load:
        stop_half_way(stack, stack.build("2"), percent, signal.SIGKILL)
        assert len(stack.containers()) == 2
        deploy(stack, stack.build("5"))
    assert load.failed == []
    assert written(stack) == [*([("canary", "2"), ("withdraw", "2")] if percent else []), ("deploy", "5")]
    assert live(stack) == ["5"]


@pytest.mark.parametrize("percent", [0, 50])
def test_a_deployment_that_is_stopped_by_hand_takes_itself_back(stack, one, percent):
    with Load(stack.port, num_clients=2) as load:
        stop_half_way(stack, stack.build("2"), percent, signal.SIGINT)
        assert live(stack) == ["1"]
        answered = load.answered["2"]
        time.sleep(0.3)
        assert load.answered["2"] == answered
    assert load.failed == []
    assert written(stack) == ([("canary", "2"), ("withdraw", "2")] if percent else [("failed", "2")])


def test_a_rollback_without_its_image_says_so(stack, one):
    gone = stack.build("6")
    deploy(stack, gone)
    deploy(stack, one)
    subprocess.run(["docker", "rmi", "--force", gone.image], check=True, capture_output=True)
    with pytest.raises(UserError, match=r"the image of stub v6 .* is not here any more: .*--version 6"):
        roll_back(stack.site(), "a test")
    assert live(stack) == ["1"]


def test_the_gateway_keeps_to_its_limits(stack, one):
    for path in ("/classify", "/cpu/classify"):
        status, answer, headers = stack.ask(f"{path}?top_k=2", headers={"X-Request-Id": "mine-12345"})
        assert (status, answer["path"]) == (200, "/classify?top_k=2")
        assert headers["X-Request-Id"] == answer["id"] == "mine-12345"
        assert headers["Server"] == "nginx"
    _, answer, headers = stack.ask(headers={"X-Request-Id": "not { one }"})
    assert headers["X-Request-Id"] == answer["id"] != "not { one }"
    assert stack.ask(body=b"x" * 100_001)[:2] == (
        413,
        {"error": "too_large", "detail": "the body is larger than the 0.1 MB that are taken"},
    )
    assert stack.ask("/no%0d%0ane")[1]["error"] == "not_found"
    assert stack.ask("/edge/classify")[1]["path"] == "/edge/classify", "no target of that name is deployed"
    assert stack.ask("/healthz", "GET")[:2] == (200, {"status": "ok"})
    assert stack.ask("/cpu", "GET")[2]["Location"] == "/cpu/"
