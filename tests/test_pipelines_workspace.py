import subprocess
import sys

import pytest

from data.errors import UserError
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
