import http.server
import threading

import pytest

from core.errors import UserError
from pipelines.settings import Settings, Stack, use_stack


@pytest.fixture
def mlflow():
    """What answers that it is healthy."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        # What a test sets is taken back even where it was not there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def write(folder, port):
    secrets = {"MLFLOW_PORT": port, "MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "pass-word"}
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))


def test_models_are_in_the_mlflow_of_the_stack(folder, mlflow, monkeypatch):
    write(folder, mlflow.server_port)
    use_stack(folder)
    assert Settings().tracking_uri(folder) == f"http://127.0.0.1:{mlflow.server_port}"
    assert Stack().mlflow_tracking_username == "admin"
    assert "pass-word" not in repr(Stack())


def test_the_administrators_password_is_in_the_folder_of_secrets(folder):
    (folder / ".secrets").mkdir()
    assert Stack().mlflow_login() is None
    (folder / ".secrets/mlflow_admin_password").write_text("secret\n")
    assert Stack().mlflow_login() == ("admin", "secret")
    write(folder, 1)
    (folder / ".secrets/mlflow_admin_password").write_text("another\n")
    assert Stack().mlflow_login() == ("admin", "pass-word"), "a user named in .env comes first"


def test_a_password_that_cannot_be_read_is_told(folder):
    (folder / ".secrets/mlflow_admin_password").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mlflow_admin_password cannot be read: .*set MLFLOW_TRACKING_URI"):
        Stack().mlflow_login()


def test_another_one_that_was_named_comes_first(folder, mlflow, monkeypatch):
    write(folder, mlflow.server_port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    use_stack(folder)
    assert Settings().tracking_uri(folder) == "http://mlflow.example"


def test_without_a_stack_they_are_in_the_workspace(folder, mlflow):
    use_stack(folder)
    assert Settings().tracking_uri(folder).startswith("sqlite:")
    port = mlflow.server_port
    mlflow.shutdown()
    mlflow.server_close()
    write(folder, port)
    use_stack(folder)
    assert Settings().tracking_uri(folder).startswith("sqlite:")


@pytest.mark.parametrize(
    ("bind", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("192.0.2.7", "192.0.2.7")]
)
def test_where_the_stack_is_reached(bind, address):
    assert Stack(convoy_bind=bind).address(8080) == f"http://{address}:8080"
