import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from core.errors import UserError
from pipelines import workspace
from pipelines.workspace import exclusive

HOLD = "from pipelines.workspace import exclusive\nwith exclusive(): print('held', flush=True); input()"


def test_a_workspace_is_held_by_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), exclusive():
            pass
        other.communicate(b"\n")
    with exclusive():
        pass


def test_a_flow_goes_on_in_what_its_command_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @exclusive()
    def flow(depth):
        return flow(depth - 1) + 1 if depth else 0

    with exclusive():
        assert flow(2) == 2
    assert flow(2) == 2


def test_a_flow_triggered_while_a_command_works_waits_its_turn_and_says_for_whom(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(workspace, "REMIND_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "convoy")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as other:
        assert other.stdout.readline() == b"held\n"

        def end_the_other():
            while len(caplog.messages) < 2:
                time.sleep(0.01)
            other.stdin.close()

        threading.Thread(target=end_the_other, daemon=True).start()
        with exclusive(waits=True):
            other.wait()
    line = f"waiting: another convoy command (process {other.pid}) works in {tmp_path}"
    assert set(caplog.messages) == {line}


def test_a_holder_in_another_container_may_have_our_process_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = f"import os; os.getpid = lambda: {os.getpid()}\n{HOLD}"
    with subprocess.Popen(
        [sys.executable, "-c", same], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {os.getpid()}"), exclusive():
            pass
        other.communicate(b"\n")
