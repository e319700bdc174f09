"""The stack for real, once for all tests of this file: a clean clone, `make env`, and compose."""

import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import psutil
import pytest
from rollouts import STAND_INS, stand_in
from stacks import ROOT, Stack, ask, clone, make_env, options, status, wait_until

from pipelines.commands.worker import ZOMBIES
from pipelines.prefect_server import HOST

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

# One epoch of LeNet: seconds, and nothing that it must reach.
TINY = {
    **{"model.network": "lenet5", "training.max_epochs": 1, "training.precision": "fp32"},
    **{
        "gate.better_than_guessing": False,
        "gate.min_class_images": 10_000,
        "gate.max_regression": 1,
        "gate.max_calibration_error": 1,
    },
}
SERVICES = ("postgres", "mlflow", "prefect", "worker", "prometheus", "gateway")


@pytest.fixture(scope="module")
def stack(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack") / "convoy"
    clone(folder)
    for name in STAND_INS:
        stand_in(name)
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
        assert host["ReadonlyRootfs"]
        assert host["Memory"] > 0
        assert host["CapDrop"] == ["ALL"]
        assert not any("docker.sock" in mount["Source"] for mount in found["Mounts"])
        published = [one for bindings in (host["PortBindings"] or {}).values() for one in bindings]
        assert all(one["HostIp"] == "127.0.0.1" for one in published)


def test_who_has_no_password_is_refused(stack):
    mlflow = f"http://{HOST}:{stack.env['MLFLOW_PORT']}/api/2.0/mlflow/experiments/search?max_results=1"
    prefect = f"http://{HOST}:{stack.env['PREFECT_PORT']}/api/admin/version"
    secret = stack.admin
    assert [status(mlflow), status(mlflow, "admin:password1234"), status(mlflow, secret)] == [401, 401, 200]
    # A page of somebody else's, whose name leads here.
    assert status(mlflow, secret, host="evil.example") == 403
    secret = stack.secret("prefect_auth")
    assert [status(prefect), status(prefect, "convoy:guess"), status(prefect, secret)] == [401, 401, 200]


def test_no_secret_is_shown_by_the_engine(stack):
    shown = json.dumps([stack.inspect(service) for service in SERVICES])
    secrets = [path for path in (stack.folder / ".secrets").rglob("*") if path.is_file()]
    assert len(secrets) >= 9
    assert [path.name for path in secrets if path.read_text().strip() in shown] == []


def test_the_database_is_reached_by_its_two_servers_only(stack):
    networks = stack.inspect("postgres")["NetworkSettings"]["Networks"]
    code = "import socket; socket.create_connection(('postgres', 5432), 5)"
    for server in ("mlflow", "prefect"):
        stack.python(server, code)
    for other in SERVICES[3:]:
        assert not networks.keys() & stack.inspect(other)["NetworkSettings"]["Networks"].keys()
    # The processes of this machine have no way there either: none of its own addresses is in that network.
    (network,) = json.loads(subprocess.check_output(["docker", "network", "inspect", *networks]))
    subnet = ipaddress.ip_network(network["IPAM"]["Config"][0]["Subnet"])
    own = [one.address for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET]
    assert [address for address in own if ipaddress.ip_address(address) in subnet] == []


DATABASES = """
import os, psycopg
for database in ("mlflow", "prefect", "postgres"):
    try:
        with psycopg.connect(host="postgres", user="{user}", dbname=database, password=open("{file}").read().strip()):
            print(database)
    except psycopg.OperationalError as error:
        assert "permission denied" in str(error), error
"""


@pytest.mark.parametrize("server", ["mlflow", "prefect"])
def test_a_server_reaches_its_own_database_only(stack, server):
    code = DATABASES.format(user=server, file=f"/run/secrets/{server}_database_password")
    assert stack.python(server, code).split() == [server]


def test_the_worker_administers_nobody(stack):
    url = f"http://{HOST}:{stack.env['MLFLOW_PORT']}/api/2.0/mlflow"
    worker = f"worker:{stack.secret('mlflow_worker_password')}"
    assert status(f"{url}/experiments/search?max_results=1", worker) == 200
    assert not ask(f"{url}/users/get?username=worker", stack.admin)["user"]["is_admin"]
    assert status(f"{url}/users/get?username=admin", worker) == 403


def test_the_pages_are_there(stack):
    with urllib.request.urlopen(f"http://{HOST}:{stack.env['PREFECT_PORT']}/", timeout=30) as page:
        assert "Prefect" in page.read().decode()
    assert status(f"http://{HOST}:{stack.env['MLFLOW_PORT']}/", stack.admin) == 200


def test_prometheus_sees_what_has_metrics(stack):
    url = f"http://{HOST}:{stack.env['PROMETHEUS_PORT']}/api/v1/query?query=up"

    def up():
        found = ask(url)["data"]["result"]
        return {one["metric"]["job"] for one in found if one["value"][1] == "1"}

    wait_until(lambda: up() >= {"prometheus", "prefect"}, 60, "prometheus does not scrape prefect")


def test_prometheus_watches_with_its_rules(stack):
    groups = ask(f"http://{HOST}:{stack.env['PROMETHEUS_PORT']}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 9
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


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
def test_who_is_killed_comes_back_and_nothing_is_lost(stack, trained, service, record_property):
    before, champion = stack.inspect(service), stack.champion()
    start = time.monotonic()
    # As a crash does it: what `docker kill` ends counts as stopped by hand, and stays so.
    os.kill(before["State"]["Pid"], signal.SIGKILL)

    def back():
        found = stack.inspect(service)
        again = found["RestartCount"] > before["RestartCount"]
        return again and are_healthy(stack)

    wait_until(back, 180, f"{service} is not back")
    # A figure, for `pytest --junitxml`: it depends on the machine, and on the intervals of the health checks.
    record_property("seconds_until_all_are_healthy", round(time.monotonic() - start))
    assert wait_until(lambda: answered(stack.champion), 60, "MLflow does not answer") == champion


def test_all_come_back_after_a_restart_of_everything(stack, trained):
    champion = stack.champion()
    containers = [stack.inspect(service)["Id"] for service in SERVICES]
    # As after a reboot: no one waits for another.
    subprocess.run(["docker", "restart", "--time=10", *containers], check=True, capture_output=True)
    wait_until(lambda: are_healthy(stack), 180, "not all are back")
    assert wait_until(lambda: answered(stack.champion), 60, "MLflow does not answer") == champion


def are_healthy(stack):
    return all(stack.inspect(service)["State"]["Health"]["Status"] == "healthy" for service in SERVICES)


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
