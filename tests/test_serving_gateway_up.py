"""The gateway as strangers and bad days meet it: a real nginx before small images in place of models."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rollouts import Load, Stack, wait_for

from serving.rollout.deploy import roll_out
from serving.rollout.gateway import GatewayConfig

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One for all tests, with version 1 live."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        deploy(stack, "1")
        yield stack


def deploy(stack, version, **options):
    return roll_out(stack.site(**options), stack.build(version), why="a test", figures={})


def gateway(stack):
    """The engine's description of the gateway's container."""
    container = stack.site().project.gateway().container
    return json.loads(subprocess.check_output(["docker", "inspect", container]))[0]


def head(path="/classify", *lines, method="POST", version="1.1"):
    """The first bytes of a request, without its body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: gateway", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("request_bytes", "status", "error"),
    [
        (head("/%"), 400, "bad_request"),
        (head("/..%2f"), 400, "bad_request"),
        (head("/%2e%2e/"), 400, "bad_request"),
        (head("/a%00b"), 400, "bad_request"),
        (head("/" + "a" * 9000), 414, "uri_too_long"),
        (head("/classify", f"X-Long: {'a' * 9000}"), 431, "headers_too_large"),
        (head("/classify", *(f"X-{number}: {'a' * 8000}" for number in range(5))), 431, "headers_too_large"),
        (head(version="3.1"), 400, "bad_request"),
        (head("/classify", "Transfer-Encoding: unknown"), 400, "bad_request"),
        (head(method="TRACE"), 405, "method_not_allowed"),
        (head("/.problem"), 404, "not_found"),
        (head("/.token"), 404, "not_found"),
        # The first bytes of a client that speaks TLS.
        (bytes.fromhex("16030100c8010000c40303") + bytes(200), 400, "bad_request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_request_gets_json(stack, request_bytes, status, error):
    found, problem, headers = stack.send(request_bytes)
    assert (found, problem["error"]) == (status, error)
    assert problem["detail"]
    assert headers["Content-Type"] == "application/json"
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]


def test_a_wrong_token_is_refused_before_the_body_is_read(stack):
    announced = ["Content-Type: image/jpeg", "Content-Length: 90000"]
    status, problem, headers = stack.send(head("/cpu/classify", "Authorization: Bearer wrong", *announced))
    assert (status, problem["error"]) == (401, "unauthorized")
    assert headers.get_all("WWW-Authenticate") == ["Bearer"]
    # The next request on a connection is asked for a token as well.
    assert stack.ask(headers={"Authorization": "Bearer right"})[0] == 200
    assert stack.ask(headers={"Authorization": "Bearer wrong"})[0] == 401


def test_a_body_is_passed_on_while_it_arrives(stack):
    # The classifier, which limits the time of a body, sees the first bytes at once; nothing waits in the gateway.
    status, answer, _ = stack.send(head("/refuse", "Content-Length: 90000") + b"some")
    assert (status, answer["path"]) == (413, "/refuse")


def test_the_classifier_tells_how_long_it_took(stack):
    requests = stack.site().project.gateway()
    requests.answered()
    stack.ask("/slow")
    # It slept three seconds and reports none: its own clock counts, which starts at the end of the body.
    assert [answer.seconds for answer in requests.answered()] == [0]


def kill(container):
    os.kill(container["State"]["Pid"], signal.SIGKILL)


def restart(container):
    subprocess.run(["docker", "restart", "--time=1", container["Id"]], check=True, capture_output=True)


@pytest.mark.parametrize("end", [kill, restart])
def test_the_gateway_comes_back_and_loses_only_what_it_held(stack, end):
    before = gateway(stack)
    with Load(stack.port, num_clients=4) as load:
        end(before)
        wait_for(lambda: gateway(stack)["State"]["StartedAt"] != before["State"]["StartedAt"], seconds=60)
        wait_for(lambda: answers(stack), seconds=60)
        lost = len(load.failed)
        time.sleep(1)
        assert len(load.failed) == lost
    # Connections that broke, or that nobody took: no request got a wrong answer.
    assert {type(failure[1]) for failure in load.failed} <= {str}
    assert gateway(stack)["RestartCount"] <= before["RestartCount"] + 1


def answers(stack):
    try:
        return stack.ask()[0] == 200
    except OSError:
        return False


# The last one, because it leaves no room for others.
def test_one_address_gets_no_more_than_its_share(stack):
    # Behind a proxy that is trusted, each client has its own share.
    limits = GatewayConfig(max_connections=2, max_requests_per_second=5, trusted_proxies=("0.0.0.0/0",))
    deploy(stack, "2", gateway=limits)
    with ThreadPoolExecutor(5) as pool:
        in_flight = list(pool.map(lambda _: stack.ask("/slow", headers=client(1)), range(5)))
    assert sorted(status for status, *_ in in_flight) == [200, 200, 429, 429, 429]
    # One after the other: these meet the limit of requests a second.
    statuses = [stack.ask(headers=client(2))[0] for _ in range(100)]
    assert statuses.count(200) >= 5
    assert statuses.count(429) == 100 - statuses.count(200) > 0
    refused = next(answer for answer in in_flight if answer[0] == 429)
    assert (refused[1]["error"], refused[2]["Retry-After"]) == ("too_many_requests", "1")
    assert stack.ask(headers=client(3))[0] == 200


def client(number):
    return {"X-Forwarded-For": f"192.0.2.{number}"}
