import json
import threading

import pytest
from pydantic import ValidationError

from serving.rollout.ledger import Entry, Release, append, history, read


def release(version):
    return Release(image=f"convoy/m:{version}", image_id=f"sha256:{version}", model_name="m", model_version=version)


def entry(what, to=None, **more):
    return Entry(what=what, target="cpu", to=release(to) if to else None, why="a test", **more)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "outputs" / "ledger.jsonl"
    first = append(path, entry("deploy", "1", figures={"test/accuracy": 0.9}))
    second = append(path, entry("deploy", "2", before=release("1")))
    assert read(path) == [first, second]
    line = json.loads(path.read_text().splitlines()[1])
    assert line.keys() == {"when", "what", "target", "from", "to", "why", "by", "figures"}
    assert (line["from"]["model_version"], line["to"]["image"]) == ("1", "convoy/m:2")
    assert "@" in line["by"]
    assert line["when"].endswith("Z")
    assert read(path, "edge") == read(tmp_path / "nothing") == []


def test_an_entry_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        entry("deploy", "1").why = "another"


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    append(path, entry("deploy", "1"))
    with path.open("a") as file:
        file.write('{"when": "2026-')
    append(path, entry("deploy", "2"))
    assert [one.to.model_version for one in read(path)] == ["1", "2"]
    assert "ledger.jsonl:2 is no entry" in caplog.text


def test_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, entry("deploy", "0"))
    writers = [threading.Thread(target=append, args=(path, entry("deploy", str(number)))) for number in range(20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read(path)) == 21
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize(
    ("changes", "live"),
    [
        ([], ""),
        ([("deploy", "1"), ("deploy", "2"), ("promote", "3")], "123"),
        ([("deploy", "1"), ("failed", "2"), ("canary", "3"), ("withdraw", "3")], "1"),
        ([("deploy", "1"), ("deploy", "2"), ("rollback", "1")], "1"),
        ([("deploy", "1"), ("deploy", "2"), ("deploy", "3"), ("rollback", "2"), ("rollback", "1")], "1"),
        ([("deploy", "1"), ("deploy", "2"), ("rollback", "1"), ("deploy", "2")], "12"),
        ([("deploy", "1"), ("deploy", "1")], "1"),
    ],
)
def test_what_has_been_live(changes, live):
    entries = [entry(what, version) for what, version in changes]
    assert "".join(one.model_version for one in history(entries)) == live
