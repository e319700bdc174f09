"""The stack for real, once for all tests of this file: a clean clone, `make env`, and compose."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.server import HOST, free_port
from pipelines.worker import ZOMBIES

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

ROOT = Path(__file__).parents[1]
# One epoch of LeNet: seconds, and nothing that it must reach.
TINY = {
    **{"model.network": "lenet5", "training.max_epochs": 1, "training.precision": "fp32"},
    **{"gate.better_than_guessing": False, "gate.min_class_images": 10_000, "gate.max_regression": 1},
}
SERVICES = ("postgres", "mlflow", "prefect", "worker", "prometheus")


@dataclass(frozen=True)
class Stack:
    """A clone of the repository whose stack is up."""

    folder: Path
    project: str
    env: dict[str, str]

    def compose(self, *arguments, **options):
        """Run `docker compose` as a user does in the clone, under a name of the tests' own."""
        command = ["docker", "compose", "--project-name", self.project, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
        return done.stdout

    def convoy(self, *arguments):
        """Run `convoy` in the worker."""
        command = ["docker", "compose", "--project-name", self.project, "exec", "-T", "worker", "convoy", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout + done.stderr

    def mlflow(self, path, **query):
        """Ask MLflow as its administrator."""
        url = f"http://{HOST}:{self.env['MLFLOW_PORT']}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
        return ask(url, f"admin:{self.env['MLFLOW_AUTH_ADMIN_PASSWORD']}")

    def prefect(self, path, body=None):
        """Ask Prefect, or post to it, as its page does."""
        url = f"http://{HOST}:{self.env['PREFECT_PORT']}/api/{path}"
        return ask(url, self.env["PREFECT_SERVER_API_AUTH_STRING"], body)

    def champion(self):
        """Give the version of the champion and the run that it comes from, as the server tells."""
        found = self.mlflow("registered-models/alias", name="classifier", alias="champion")["model_version"]
        return found["version"], self.mlflow("runs/get", run_id=found["run_id"])["run"]

    def inspect(self, service):
        """Tell the engine's description of a container."""
        (found,) = json.loads(subprocess.check_output(["docker", "inspect", f"{self.project}-{service}-1"]))
        return found


def ask(url, secret=None, body=None):
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if secret:
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def status(url, secret=None, host=None):
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    if secret:
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def options(values):
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(1)
    return found


def clone(folder):
    """Clone the repository, and lay over it what has been changed since the last commit."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    names = subprocess.check_output(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    for name in names.decode().splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)


def make_env(folder):
    """Say `make env`, and take ports that are free here."""
    subprocess.run(["make", "--silent", "env"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    path = folder / ".env"
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    env = dict(line.split("=", 1) for line in lines)
    env |= {name: str(free_port()) for name in env if name.endswith("_PORT")}
    path.write_text("".join(f"{name}={value}\n" for name, value in env.items()))
    return env


@pytest.fixture(scope="module")
def stack(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack") / "convoy"
    clone(folder)
    made = Stack(folder, f"stack-test-{os.getpid()}", make_env(folder))
    try:
        made.compose("up", "--build", "--wait", "--wait-timeout", "400", timeout=1200)
        yield made
    finally:
        made.compose("down", "--volumes", "--rmi", "local", "--timeout", "5")


@pytest.fixture(scope="module")
def trained(stack):
    """Train the first champion as a user does; gives what the command said."""
    return stack.convoy("run", *options(TINY))


def test_without_secrets_compose_says_what_to_do(tmp_path):
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    done = subprocess.run(["docker", "compose", "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make env" in done.stderr


def test_containers_are_kept_small(stack):
    for service in SERVICES:
        found = stack.inspect(service)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"] or service == "prometheus"
        assert host["Memory"] > 0
        assert host["CapDrop"] == ["ALL"]
        assert not any("docker.sock" in mount["Source"] for mount in found["Mounts"])
        published = [one for bindings in (host["PortBindings"] or {}).values() for one in bindings]
        assert all(one["HostIp"] == "127.0.0.1" for one in published)


def test_who_has_no_password_is_refused(stack):
    mlflow = f"http://{HOST}:{stack.env['MLFLOW_PORT']}/api/2.0/mlflow/experiments/search?max_results=1"
    prefect = f"http://{HOST}:{stack.env['PREFECT_PORT']}/api/admin/version"
    secret = f"admin:{stack.env['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    assert [status(mlflow), status(mlflow, "admin:password1234"), status(mlflow, secret)] == [401, 401, 200]
    # A page of somebody else's, whose name leads here.
    assert status(mlflow, secret, host="evil.example") == 403
    secret = stack.env["PREFECT_SERVER_API_AUTH_STRING"]
    assert [status(prefect), status(prefect, "convoy:guess"), status(prefect, secret)] == [401, 401, 200]


def test_the_pages_are_there(stack):
    with urllib.request.urlopen(f"http://{HOST}:{stack.env['PREFECT_PORT']}/", timeout=30) as page:
        assert "Prefect" in page.read().decode()
    secret = f"admin:{stack.env['MLFLOW_AUTH_ADMIN_PASSWORD']}"
    assert status(f"http://{HOST}:{stack.env['MLFLOW_PORT']}/", secret) == 200


def test_prometheus_sees_what_has_metrics(stack):
    url = f"http://{HOST}:{stack.env['PROMETHEUS_PORT']}/api/v1/query?query=up"

    def up():
        found = ask(url)["data"]["result"]
        return {one["metric"]["job"] for one in found if one["value"][1] == "1"}

    wait_until(lambda: up() >= {"prometheus", "prefect"}, 60, "prometheus does not scrape prefect")


def test_a_run_gives_a_champion(stack, trained):
    assert "is the champion, packed as" in trained
    version, run = stack.champion()
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=stack.folder, text=True).strip()
    assert version == "1"
    assert commit in tags.values()
    # The files are the server's, and not in the worker.
    assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:")


HOLD = "from pipelines.workspace import exclusive\nwith exclusive(): print('held', flush=True); input()"


def test_a_flow_triggered_as_the_page_does_waits_until_a_command_ends(stack, trained):
    deployment = stack.prefect("deployments/name/run-pipeline/run-pipeline")
    config = deployment["parameters"]["config"]
    for path, value in {**TINY, "training.seed": 1}.items():
        section, name = path.split(".")
        config[section][name] = value
    command = ["docker", "compose", "--project-name", stack.project, "exec", "-T", "worker", "python", "-c", HOLD]
    with subprocess.Popen(command, cwd=stack.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        run = stack.prefect(f"deployments/{deployment['id']}/create_flow_run", {"parameters": {"config": config}})

        def waits():
            logs = stack.prefect("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
            return any(log["message"].startswith("waiting: another convoy command") for log in logs)

        wait_until(waits, 120, "the flow does not wait for the workspace")
        holder.communicate(b"\n")
    ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    def state():
        found = stack.prefect(f"flow_runs/{run['id']}")["state"]
        return found if found["type"] in ended else None

    found = wait_until(state, 300, "the flow has not ended")
    assert found["type"] == "COMPLETED", found["message"]
    assert stack.champion()[0] == "2"


def test_runs_whose_worker_dies_are_ended(stack):
    assert ZOMBIES in [one["name"] for one in stack.prefect("automations/filter", {})]


@pytest.mark.parametrize("service", SERVICES)
def test_who_is_killed_comes_back_and_nothing_is_lost(stack, trained, service):
    before, champion = stack.inspect(service), stack.champion()
    # As a crash does it: what `docker kill` ends counts as stopped by hand, and stays so.
    os.kill(before["State"]["Pid"], signal.SIGKILL)

    def back():
        found = stack.inspect(service)
        again = found["RestartCount"] > before["RestartCount"]
        return again and all(stack.inspect(one)["State"]["Health"]["Status"] == "healthy" for one in SERVICES)

    wait_until(back, 180, f"{service} is not back")
    assert wait_until(lambda: answered(stack.champion), 60, "MLflow does not answer") == champion


def answered(function):
    """What it gives, or None while a server goes without its database for a moment."""
    try:
        return function()
    except (urllib.error.URLError, OSError):
        return None


def test_a_new_container_finds_what_was_made(stack, trained):
    stack.compose("up", "--wait", "--force-recreate", "--no-deps", "worker", timeout=300)
    # The champion may be a better one by now.
    said = stack.convoy("run", *options(TINY))
    assert "prepare: skipped" in said
    assert "train: skipped" in said
