"""What a terminal of 80 columns shows of a training."""

import io
import re
import signal

import pytest
from checkpoints import steps_per_epoch, stop_at
from conftest import tiny_job

from models.training.train import train


class Terminal(io.StringIO):
    """Text that takes itself for a terminal of 80 columns."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of stderr. Not in a fixture: pytest puts its own there when the test begins."""
        super().__init__()
        # tqdm leaves the last column free.
        patch.setenv("COLUMNS", "81")
        patch.setenv("LINES", "25")
        patch.setattr("sys.stderr", self)

    def isatty(self) -> bool:
        return True


def lines(terminal: Terminal) -> list[str]:
    """What was drawn, each time anew; without empty lines."""
    return [line for line in re.split(r"[\r\n]", terminal.getvalue()) if line.strip()]


def test_the_bar_shows_the_figures_of_its_epoch_and_keeps_its_shape(prepared, tmp_path, monkeypatch):
    terminal = Terminal(monkeypatch)
    train(tiny_job(prepared, log_every_n_steps=1), tmp_path)
    drawn = lines(terminal)
    assert {len(line) for line in drawn} == {80}
    assert "loss" not in next(line for line in drawn if line.startswith("epoch 2/3   0%"))
    left = re.findall(
        r"epoch (\d)/3 100%\|#+\| loss \d\.\d{3}  val \d\.\d{3}, [ \d]+\.\d % +(\S+) left", "\n".join(drawn)
    )
    assert [epoch for epoch, _ in left] == ["1", "2", "3"]
    assert left[-1][1] == "00:00"


def test_the_bar_of_a_resumed_epoch_begins_where_it_was_stopped(prepared, tmp_path, monkeypatch):
    terminal, job = Terminal(monkeypatch), tiny_job(prepared)
    num_steps = steps_per_epoch(job)
    with monkeypatch.context() as patch:
        stop_at(patch, num_steps + 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path)
    assert terminal.getvalue().endswith("\n")
    num_before = len(lines(terminal))
    train(job, tmp_path)
    first = lines(terminal)[num_before]
    assert first.startswith(f"epoch 2/3 {100 * 3 / num_steps:3.0f}%|")
