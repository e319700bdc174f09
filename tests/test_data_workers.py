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
    """A dozen, for two processes."""
    monkeypatch.setattr(workers, "BYTES_PER_PROCESS", 1)
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    return sorted(write(tmp_path, {str(number): b"1" for number in range(12)}).iterdir())


def work(path):
    return path.name, os.getpid()


def test_each_file_is_worked_on_once_in_another_process(files):
    names, processes = zip(*map_files(work, files), strict=True)
    assert sorted(names) == sorted(path.name for path in files)
    assert os.getpid() not in processes


def die(path, by):
    os.kill(os.getpid(), by)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_the_system_ends_is_told(files, by):
    with pytest.raises(UserError, match=r"^the system has ended a process .*, most likely for lack of memory: close"):
        list(map_files(partial(die, by=by), files))


def fail(path):
    raise EOFError("of the work")


def test_what_the_work_raises_is_raised(files):
    with pytest.raises(EOFError, match="of the work"):
        list(map_files(fail, files))
