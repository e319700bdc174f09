"""Who is told of what: a real SMTP server and a real HTTP receiver on this machine."""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from test_pipelines_commands import convoy, told

from pipelines.config import Config
from pipelines.operations import notices
from pipelines.operations.deliver import LOG
from pipelines.operations.notices import OUTBOX, tell, tell_entry
from pipelines.operations.receivers import RECEIVERS, Receiver, make_receiver
from pipelines.operations.send import Message, send_to_all
from serving.rollout.ledger import Entry, Release

MESSAGE = Message(event="failure", subject="a failure", body="the disk is full")
SLACK = "https://hooks.slack.com/services/T0000/B0000/" + 24 * "x"
DISCORD = "https://discord.com/api/webhooks/123456789/token-of-it"
TEAMS = (
    "https://prod-1.westus.logic.azure.com:443/workflows/0123456789abcdef0123456789abcdef/triggers/manual/paths/invoke"
    "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=" + 43 * "s"
)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def web() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """An HTTP receiver: its address, and what it has got; /broken answers 500."""
    got: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")  # as Slack does

        def log_message(self, *_: object) -> None:
            pass

    with serving(HTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", got


@pytest.fixture
def mail() -> Iterator[tuple[str, list[str]]]:
    """An SMTP server without TLS that knows one password: its address, and the mails that it has got."""
    got: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline().decode().strip():
                word = line.split()[0].upper()
                if word == "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = []
                    while (text := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                        lines.append(text)
                    got.append("\n".join(lines))
                is_refused = word == "AUTH" and not line.endswith("AHJvYm90AHNlY3JldA==")  # robot, secret
                answers = {"EHLO": "250-here\r\n250 AUTH PLAIN", "QUIT": "221 bye", "AUTH": "235 in"}
                answer = "535 no" if is_refused else answers.get(word, "250 well")
                self.wfile.write(f"{answer}\r\n".encode())
                if word == "QUIT":
                    return

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"127.0.0.1:{port}", got


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a receiver that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def receiver(kind: str, address: str, server: str = "") -> Receiver:
    return make_receiver(kind, kind, address, server, [])


def test_a_webhook_and_a_mailbox_get_the_message(web, mail):
    url, posted = web
    server, mails = mail
    me = receiver("email", "me@example.org", f"smtp://robot:secret@{server}")
    assert send_to_all(MESSAGE, [receiver("webhook", url), me]) == {"webhook": None, "email": None}
    assert posted == [{"event": "failure", "subject": "a failure", "body": "the disk is full"}]
    (text,) = mails
    assert "Subject: a failure\nTo: me@example.org\nFrom: convoy@example.org\n" in text
    assert text.endswith("\n\nthe disk is full")


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # apprise
@pytest.mark.parametrize(("kind", "address"), [("slack", SLACK), ("discord", DISCORD), ("teams", TEAMS)])
def test_chats_get_it_by_prefects_blocks(web, monkeypatch, kind, address):
    receiver_url, posted = web
    asked = []
    request = requests.Session.request

    def to_us(session, method, url, **more):
        asked.append(url)
        return request(session, method, receiver_url, **more)

    monkeypatch.setattr(requests.Session, "request", to_us)
    assert send_to_all(MESSAGE, [receiver(kind, address)]) == {kind: None}
    assert asked[0].split("/")[2].partition(":")[0] == address.split("/")[2].partition(":")[0]
    assert "the disk is full" in json.dumps(posted)


def test_who_does_not_take_it_is_named_without_secrets(web, mail, silent):
    url, _ = web
    wrong = receiver("email", "me@example.org", f"smtp://robot:wrong@{mail[0]}")
    hangs = make_receiver("hangs", "webhook", f"http://{silent}/secret", "", [])
    gone = make_receiver("gone", "webhook", "http://127.0.0.1:9/secret", "", [])
    failures = send_to_all(MESSAGE, [receiver("webhook", f"{url}/broken"), wrong, hangs, gone], seconds=1)
    assert "500" in failures["webhook"]
    assert "535" in failures["email"]
    assert failures["hangs"] == "no answer within 1 s"
    assert failures["gone"]
    assert "secret" not in str(failures)
    assert "broken" not in str(failures)


def test_a_password_is_not_sent_where_everyone_could_read_it(mail, monkeypatch):
    server, mails = mail
    monkeypatch.setattr("pipelines.operations.send.LOOPBACK", ())
    failure = send_to_all(MESSAGE, [receiver("email", "me@example.org", f"smtp://robot:secret@{server}")])["email"]
    assert failure == "127.0.0.1 offers no TLS: the password is not sent"
    assert mails == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "fax", "1"], "kind: input should be 'slack'"),
        (["A b", "webhook", "http://x.org"], "'A b' is no name"),
        (["a", "webhook", "x.org"], "this is no URL"),
        (["a", "slack", "https://example.org/secret"], "this is no webhook of Slack"),
        (["a", "discord", "https://discord.com/secret"], "this is no webhook of Discord"),
        (["a", "email", "me"], "this is no e-mail address"),
        (["a", "email", "me@example.org"], "e-mail needs --smtp"),
        (["a", "webhook", "http://x.org", "--on", "sunday"], "events: input should be"),
    ],
)
def test_a_receiver_that_is_none(workspace, arguments, message):
    line = told(convoy("notify", "add", *arguments), 2)
    assert message in line
    assert "secret" not in line
    assert not RECEIVERS.exists()


def test_receivers_are_added_tested_listed_and_removed(workspace, web):
    url, posted = web
    assert "there is no receiver: add one" in told(convoy("notify", "test"), 2)
    assert convoy("notify", "add", "bot", "webhook", f"{url}/broken").exit_code == 0
    assert convoy("notify", "add", "bot", "webhook", url, "--on", "rollback").exit_code == 0
    assert RECEIVERS.stat().st_mode & 0o777 == 0o600
    assert convoy("notify", "test", "bot").stdout == "bot: sent\n"
    assert [one["event"] for one in posted] == ["test"]
    assert convoy("notify", "list").stdout.split() == ["bot", "webhook", "rollback"]
    assert "there is no receiver cat" in told(convoy("notify", "remove", "cat"), 2)
    assert convoy("notify", "remove", "bot").exit_code == 0
    assert convoy("notify", "list").stdout == ""
    convoy("notify", "add", "bad", "webhook", f"{url}/broken")
    assert "not every receiver took the message" in told(convoy("notify", "test"), 1)
    RECEIVERS.write_text("cut o")
    assert "is damaged" in told(convoy("notify", "list"), 2)


def test_the_ledger_tells_of_what_people_wait_for(workspace, monkeypatch):
    said = []
    monkeypatch.setattr(notices, "tell", lambda event, *_: said.append(event))
    for what in ("promote", "wait", "refuse", "deploy", "canary", "rollback", "withdraw", "failed"):
        tell_entry(Entry(what=what, to=Release(model_name="m"), why="asked"))
    assert said == ["promotion", "approval", "promotion", "rollback", "rollback"]


def test_nobody_to_tell_starts_no_process(workspace):
    tell("failure", "it failed", "why")
    convoy("notify", "add", "bot", "webhook", "http://127.0.0.1:9", "--on", "rollback")
    tell("failure", "it failed", "why")
    assert not OUTBOX.exists()
    RECEIVERS.write_text("cut o")
    tell("failure", "it failed", "why")


@pytest.mark.slow
def test_who_hangs_holds_nothing_up(workspace, web, silent):
    url, posted = web
    convoy("notify", "add", "bot", "webhook", url)
    convoy("notify", "add", "hangs", "webhook", f"http://{silent}")
    tell("crash", "it died", "kill -9")
    tell("approval", "it waits", "too few images")
    assert not posted, "the process has only been started"
    deadline = time.monotonic() + 60
    while not (LOG.is_file() and LOG.read_text().count("\n") == 4):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sorted(one["event"] for one in posted) == ["approval", "crash"]
    assert posted[0]["subject"].startswith(f"Convoy, {Path.cwd().name}: it ")
    assert LOG.read_text().count("bot: ") == LOG.read_text().count(": sent\n") == 2
    assert list(OUTBOX.iterdir()) == []


@pytest.mark.slow
def test_a_flow_that_fails_tells_once(workspace, monkeypatch):
    from prefect.testing.utilities import prefect_test_harness

    from pipelines import flows

    said = []
    monkeypatch.setattr(flows, "tell", lambda event, subject, _: said.append((event, subject)))
    config = Config.model_validate({"data": {"source": "folder", "path": "nowhere"}})
    with prefect_test_harness(server_startup_timeout=120), pytest.raises(Exception, match="nowhere"):
        flows.run_pipeline(config)
    assert said == [("failure", "failure of run-pipeline")]
