import errno

import pytest
from images import photos, write

from data.config import DataConfig
from data.ingest import stage
from data.ingest.shard_states import ShardState, add_state, read_states

STATE = ShardState(state="s", written=[1, 2], rejected=[])


def test_a_half_written_line_spoils_no_other(tmp_path):
    file = tmp_path / "states.jsonl"
    file.write_text('{"a.parquet": {"sta')
    add_state(file, "b.parquet", STATE)
    add_state(file, "c.parquet", STATE)
    assert read_states(file) == {"b.parquet": STATE, "c.parquet": STATE}


def test_a_shard_that_cannot_be_noted_is_not_there(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = DataConfig(source="folder", path=write(tmp_path / "source", photos(4)))
    monkeypatch.setattr(stage, "add_state", full)
    with pytest.raises(OSError, match="No space"):
        stage.ingest(config, tmp_path / "raw", tmp_path / "states.jsonl")
    assert not list((tmp_path / "raw").iterdir())
