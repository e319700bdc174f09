import argparse
import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartParser

from benchmarks import serve
from benchmarks.report import Report, run
from benchmarks.serve_load import Call, at_pace, at_rate, together
from benchmarks.serve_servers import BOUNDARY, Server, as_form, running


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers after 2 ms, and refuses the body `no`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.002)
        self.send_response(400 if body == b"no" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def test_clients_wait_for_their_answers(port):
    load = together(Call(port, "/", [b"a", b"b"], {}), num_clients=4, num_requests=20)
    assert len(load.latencies) == 20
    assert min(load.latencies) >= 0.002
    assert load.seconds >= 20 / 4 * 0.002
    assert load.rate == pytest.approx(20 / load.seconds)


def test_a_refusal_ends_the_measurement(port):
    with pytest.raises(RuntimeError, match="answered 400"):
        together(Call(port, "/", [b"a", b"no"], {}), num_clients=1, num_requests=2)


def test_at_a_rate_a_request_is_late_from_when_it_was_due(port):
    # One client, to whom requests come faster than it is answered: each waits for those before it.
    load = at_rate(Call(port, "/", [b"a"], {}), rate=5000, num_requests=20, num_clients=1)
    assert load.percentile(100) > 10 * 0.002
    assert load.percentile(100) > 2 * load.percentile(0)


def test_at_a_pace_each_client_keeps_its_own(port):
    load = at_pace(Call(port, "/", [b"a"], {}), rate=200, num_requests=20, num_clients=4)
    assert len(load.latencies) == 20
    assert load.seconds >= 4 * 4 / 200


@pytest.mark.anyio
async def test_an_image_is_the_field_of_a_form():
    async def body():
        yield as_form(b"\xff\xd8 bytes \r\n")

    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    form = await MultiPartParser(headers, body()).parse()
    assert await form["image"].read() == b"\xff\xd8 bytes \r\n"
    await form.close()


def test_a_server_that_does_not_start_says_why(tmp_path):
    server = Server("broken", lambda _: [sys.executable, "-c", "exit('no model')"], "/", "/", bytes, {}, {})
    with pytest.raises(RuntimeError, match="broken does not start: no model"), running(server, tmp_path / "log"):
        pass


def test_a_goal_may_be_a_limit():
    report = Report("x")
    report.add("cost", 1.0, "ms", at_most=1.0)
    report.add("cost", 1.1, "ms", at_most=1.0)
    assert [row["met"] for row in json.loads(json.dumps(report.as_json()))["rows"]] == [True, False]


def test_without_a_gpu_its_target_is_not_compared(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["serve", "--target", "gpu"])
    with pytest.raises(SystemExit, match=r"^benchmarks: torch finds no CUDA device here"):
        run(serve.measure, serve.OPTIONS)


@pytest.mark.slow
def test_endpoints_are_compared_with_their_peers(monkeypatch):
    small = replace(serve.ALEXNET, in_int8=True, size=72, crop=64, photo=(96, 72))
    monkeypatch.setattr(serve, "CASES", (small, serve.LENET))
    report = serve.measure(argparse.Namespace(rounds=1, requests=20, target="cpu"))
    metrics = {row.metric for row in report.rows}
    assert {"Convoy / limit, AlexNet", "Convoy / BentoML, AlexNet", "MLflow: 16 clients, AlexNet"} <= metrics
    assert "Convoy - Starlette + onnxruntime, LeNet" in metrics
