import itertools
import math
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tracking.journal import Journal


def steps(path, name="loss"):
    return [point.step for line in Journal(path).read(0) for point in line.points if point.name == name]


def test_what_was_appended_is_read_back_from_any_line_on(tmp_path):
    journal = Journal(tmp_path / "new" / "journal")
    journal.append({"loss": 0.1, "accuracy": 1 / 3}, 1)
    journal.append({"loss": math.inf}, 2)
    first, second = journal.read(0)
    assert [(point.name, point.step, point.value) for point in first.points] == [
        ("loss", 1, 0.1),
        ("accuracy", 1, 1 / 3),
    ]
    assert list(journal.read(first.end)) == [second]
    assert list(journal.read(second.end)) == []
    assert second.points[0].value == math.inf


def test_replayed_steps_are_not_added_again_and_late_metrics_of_a_step_are(tmp_path):
    for _ in range(2):
        journal = Journal(tmp_path / "journal")
        for step in (1, 2, 3):
            journal.append({"loss": 0.5}, step)
        journal.append({"loss": 0.5, "epoch": 0}, 3)
    assert steps(tmp_path / "journal") == [1, 2, 3]
    assert steps(tmp_path / "journal", "epoch") == [3]


def test_what_was_written_elsewhere_counts_as_written(tmp_path):
    journal = Journal(tmp_path / "journal", {"loss": 7})
    journal.append({"loss": 0.5}, 7)
    journal.append({"loss": 0.5}, 8)
    journal.append_next({"cpu": 1.0})
    journal.append_next({"cpu": 1.0, "loss": 0.5})
    assert steps(tmp_path / "journal") == [8, 9]
    assert steps(tmp_path / "journal", "cpu") == [0, 9]


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.append({"loss": 0.5}, 1)
    content = journal.path.read_bytes()
    for length in range(1, len(content) - 1):
        journal.path.write_bytes(content + content[:length])
        assert len(list(journal.read(0))) == 1


def test_damaged_bytes_are_cut_off_with_all_that_follows(tmp_path):
    """A power failure may leave blocks of zeros."""
    path = tmp_path / "journal"
    Journal(path).append({"loss": 0.5}, 1)
    whole = path.read_bytes()
    for damage in (
        b"\0" * 100,
        b"\0\n" + whole,
        b"[]\n",
        b"7\n",
        b"{}\n",
        b"\xff\n",
        b'{"step": 1, "time": 1, "metrics": 2}\n',
    ):
        path.write_bytes(whole + damage)
        Journal(path).append({"loss": 0.5}, 2)
        assert steps(path) == [1, 2]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal")
    journal.append({"loss": 0.5}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
        with pytest.raises(OSError, match="No space left"):
            journal.append({"loss": 0.5}, 2)
    journal.append({"loss": 0.5}, 2)
    assert steps(journal.path) == [1, 2]


class FullDisk(FileIO):
    def write(self, content):
        super().write(content[:10])
        raise OSError(28, "No space left on device")


NUM_STEPS = 12
POINTS = {("loss", step) for step in range(NUM_STEPS)} | {("epoch_loss", step) for step in range(3, NUM_STEPS, 4)}


def train(journal, first, last):
    """Log as Lightning does: each step on its own, and what belongs to an epoch in a second call of its last step."""
    for step in range(first, last):
        journal.append({"loss": step / 7}, step)
        if step % 4 == 3:
            journal.append({"epoch_loss": step / 3}, step)


@settings(max_examples=100, deadline=None)
@given(kills=st.lists(st.tuples(st.floats(0, 1), st.integers(0, NUM_STEPS), st.integers(0, NUM_STEPS)), max_size=6))
def test_killed_anywhere_and_resumed_from_some_steps_back_each_point_is_there_once(tmp_path_factory, kills):
    """A kill leaves any number of bytes; the training goes on from any step at or before the first that is lost."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    start = 0
    for share, num_steps, steps_back in kills:
        train(Journal(path), start, min(start + num_steps, NUM_STEPS))
        content = path.read_bytes()
        path.write_bytes(content[: round(share * len(content))])
        kept = {(point.name, point.step) for line in Journal(path).read(0) for point in line.points}
        first_lost = min((step for _, step in POINTS - kept), default=NUM_STEPS)
        start = max(0, first_lost - steps_back)
    train(Journal(path), start, NUM_STEPS)
    found = [point for line in Journal(path).read(0) for point in line.points]
    assert sorted((point.name, point.step) for point in found) == sorted(POINTS)
    assert {point.value for point in found if point.name == "loss"} == {step / 7 for step in range(NUM_STEPS)}
    assert all(one.time <= other.time for one, other in itertools.pairwise(found))
