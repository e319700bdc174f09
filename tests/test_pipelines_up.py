"""What `convoy up` starts and offers."""

import logging
import socket
import subprocess
import sys

import pytest

from pipelines.config import describe
from pipelines.prefect_server import HOST, free_port, next_free_port


def test_a_port_in_use_leads_to_the_next_free_one(caplog):
    caplog.set_level(logging.INFO, "convoy")
    with socket.socket() as listener:
        listener.bind((HOST, free_port()))
        listener.listen()
        wanted = listener.getsockname()[1]
        found = next_free_port("Prefect", wanted)
    assert wanted < found < wanted + 100
    assert f"up: port {wanted} is in use, Prefect takes {found}" in caplog.text
    assert next_free_port("MLflow", found, taken=found) > found


def test_prefects_page_eats_nothing_of_a_description():
    """The page takes descriptions for Markdown with HTML."""
    assert [name for name, _, text in describe() if set("<>*") & set(text)] == []


STOPPED = """
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
with prefect_test_harness(server_startup_timeout=120):
    from pipelines import flows, tasks
    from pipelines.config import Config
    def stop(*_, **__):
        raise KeyboardInterrupt
    tasks.reproduce_data = stop
    try:
        flows.prepare_data(Config())
    except KeyboardInterrupt:
        with get_client(sync_client=True) as client:
            print([run.state.name for run in client.read_flow_runs()])
"""


@pytest.mark.slow
def test_ctrl_c_cancels_a_flow(workspace):
    found = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=False)
    assert found.stdout.splitlines()[-1] == "['Cancelled']", found.stderr
