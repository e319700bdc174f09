"""The processes that work on many files at once."""

import multiprocessing
import os
import signal
import time

import pytest
from images import write

from data import workers
from data.errors import UserError
from data.workers import map_files

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A dozen, for two processes: this one, which works too, and another."""
    monkeypatch.setattr(workers, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    return sorted(write(tmp_path, {str(number): b"1" for number in range(12)}).iterdir())


def die(path):
    """Kill the process that works on a file, unless it is the one that the tests run in."""
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_the_system_ends_is_told(files):
    with pytest.raises(UserError, match=r"^the system has ended a process .*, most likely for lack of memory: close"):
        list(map_files(die, files))


def threads_of(path):
    """Tell how many threads the libraries of a process may start; slowly, so that no process takes all files."""
    time.sleep(0.2)
    return multiprocessing.parent_process() is not None, os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize("given", [None, "3"])
def test_processes_compute_on_one_thread_unless_told_otherwise(files, monkeypatch, given):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert set(map_files(threads_of, files)) == {(False, given), (True, given or "1")}
