"""The processes that work on many files at once."""

import os
import signal
import time
from functools import partial

import pytest
from images import write

from core.errors import UserError
from data.preparing import workers
from data.preparing.workers import map_files

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A dozen, for two processes: this one, which works too, and another."""
    monkeypatch.setattr(workers, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    monkeypatch.setenv(TESTS, str(os.getpid()))
    return sorted(write(tmp_path, {str(number): b"1" for number in range(12)}).iterdir())


TESTS = "PROCESS_OF_THE_TESTS"


def is_other():
    """Tell a process that works for the tests from the one that they run in."""
    return os.environ[TESTS] != str(os.getpid())


def die(path, by):
    if is_other():
        os.kill(os.getpid(), by)


def test_a_process_that_the_system_ends_is_told(files):
    with pytest.raises(UserError, match=r"^the system has ended a process .*, most likely for lack of memory: close"):
        list(map_files(partial(die, by=signal.SIGKILL), files))


def test_a_process_that_crashes_is_told_from_one_that_the_system_ends(files):
    with pytest.raises(RuntimeError, match=r"^a process that was decoding images has ended with status -11$"):
        list(map_files(partial(die, by=signal.SIGSEGV), files))


def fail(path):
    if is_other():
        raise EOFError("of the work")


def test_what_the_work_raises_is_raised(files):
    with pytest.raises(EOFError, match="of the work"):
        list(map_files(fail, files))


def threads_of(path):
    """Tell how many threads the libraries of a process may start; slowly, so that no process takes all files."""
    time.sleep(0.2)
    return is_other(), os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize("given", [None, "3"])
def test_processes_compute_on_one_thread_unless_told_otherwise(files, monkeypatch, given):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert set(map_files(threads_of, files)) == {(False, given), (True, given or "1")}
