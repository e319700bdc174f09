import errno
import os
import sqlite3

import pytest
from images import files_in

from core.errors import UserError
from core.files import is_disk_full, remove_unfinished, whole_file
from data.stages import MESSAGE_FILE, read_params, run_stage


def interrupted(path):
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "name"
    for content in (b"first", b"second"):
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            assert path.exists() == (content == b"second")
        assert files_in(tmp_path) == {"name": content}
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert files_in(tmp_path) == {"name": b"second"}


def test_what_a_kill_leaves_is_removed_and_nothing_else(tmp_path):
    for name in (".a.tmp", "a.tmp", ".a"):
        (tmp_path / name).write_bytes(b"")
    remove_unfinished(tmp_path)
    assert files_in(tmp_path).keys() == {"a.tmp", ".a"}


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "name"
    with whole_file(path) as one:
        with whole_file(path) as other:
            one.write_bytes(b"the first")
            other.write_bytes(b"the second")
        assert path.read_bytes() == b"the second"
    assert files_in(tmp_path) == {"name": b"the first"}


def test_a_writer_that_was_given_up_changes_nothing(tmp_path):
    path = tmp_path / "name"
    path.write_bytes(b"as it is")

    def write_late():
        with whole_file(path) as temporary:
            temporary.write_bytes(b"of an earlier run")
            remove_unfinished(tmp_path)

    with pytest.raises(FileNotFoundError):
        write_late()
    assert files_in(tmp_path) == {"name": b"as it is"}


def raising(error):
    def stage():
        raise error

    return stage


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [UserError("do this"), FULL, OSError(errno.EDQUOT, "quota")])
def test_what_a_person_can_mend_is_left_for_whoever_asked(tmp_path, monkeypatch, capfd, error):
    message = tmp_path / "message"
    monkeypatch.setenv(MESSAGE_FILE, str(message))
    with pytest.raises(SystemExit, match=r"^1$"):
        run_stage(raising(error))
    assert capfd.readouterr() == ("", "")
    expected = "do this" if isinstance(error, UserError) else "is full: free some space and run the same command"
    assert expected in message.read_text()
    # Nobody has asked, or the disk has no room for a line either.
    for setting in ("", str(tmp_path / "nowhere" / "message")):
        monkeypatch.setenv(MESSAGE_FILE, setting)
        with pytest.raises(SystemExit, match=r"^1$"):
            run_stage(raising(error))
        assert f"convoy: {message.read_text()}" in capfd.readouterr().err
    monkeypatch.delenv(MESSAGE_FILE)
    with pytest.raises(SystemExit, match=r"^1$"):
        run_stage(raising(error))
    assert f"convoy: {message.read_text()}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("innermost", "is_full"),
    [(FULL, True), (sqlite3.OperationalError("database or disk is full"), True), (ValueError(), False)],
)
def test_a_full_disk_is_found_among_the_causes(innermost, is_full):
    error = RuntimeError("writing")
    error.__cause__ = innermost
    assert is_disk_full(error) is is_full


def test_a_name_that_is_no_text_can_be_told(tmp_path, monkeypatch):
    monkeypatch.setenv(MESSAGE_FILE, str(tmp_path / "message"))
    with pytest.raises(SystemExit):
        run_stage(raising(UserError("caf\udce9 is missing")))
    assert (tmp_path / "message").read_text() == r"caf\udce9 is missing"


def test_an_interruption_is_told_by_the_status():
    with pytest.raises(SystemExit, match=r"^130$"):
        run_stage(raising(KeyboardInterrupt))


def test_a_fault_of_ours_is_not_hidden():
    for error in (ValueError("ours"), OSError(errno.ENOENT, "ours")):
        with pytest.raises(type(error), match="ours"):
            run_stage(raising(error))


def test_parameters_come_from_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^outputs/data-params.json is missing: `convoy data prepare` writes it"):
        read_params("prepare")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "data-params.json").write_text('{"prepare": {"size": 28}}')
    assert read_params("prepare") == {"size": 28}
    (tmp_path / "outputs" / "data-params.json").write_text(
        '{"ingest": {"path": null}, "prepare": {"size": 28}, "untracked": {"prepare": {"scheduler": "tcp://h:1"}}}'
    )
    assert read_params("prepare") == {"size": 28, "scheduler": "tcp://h:1"}
    assert read_params("ingest") == {"path": None}
