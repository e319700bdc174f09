"""The processes that work on many files at once."""

import os
import signal
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


def work(path):
    return path.name, is_other()


def test_each_file_is_worked_on_once(files):
    names, others = zip(*map_files(work, files), strict=True)
    assert sorted(names) == sorted(path.name for path in files)
    assert set(others) == {True, False}


def die(path, by):
    if is_other():
        os.kill(os.getpid(), by)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_the_system_ends_is_told(files, by):
    with pytest.raises(UserError, match=r"^the system has ended a process .*, most likely for lack of memory: close"):
        list(map_files(partial(die, by=by), files))


def fail(path):
    if is_other():
        raise EOFError("of the work")


def test_what_the_work_raises_is_raised(files):
    with pytest.raises(EOFError, match="of the work"):
        list(map_files(fail, files))
