import hashlib
import json
import threading

import pytest
from pydantic import ValidationError

from serving.rollout import chain
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
    assert line.keys() == {"when", "what", "target", "from", "to", "why", "by", "figures", "previous"}
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
    assert chain.verify(path).faults == ()
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


@pytest.fixture
def ledger(tmp_path):
    """Four lines."""
    path = tmp_path / "ledger.jsonl"
    for version in "1234":
        append(path, entry("deploy", version))
    return path


def rewrite(path, change):
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in change(lines)))


def test_a_ledger_that_nobody_touched_is_whole(ledger, tmp_path):
    found = chain.verify(ledger)
    assert (found.faults, found.num_unchained, found.head.num_lines) == ((), 0, 4)
    assert found.head.sha256 == hashlib.sha256(ledger.read_bytes().splitlines()[-1]).hexdigest()
    assert chain.verify(tmp_path / "nothing").faults == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda lines: [lines[0], lines[1].replace("a test", "a lie"), *lines[2:]], ":3 does not follow line 2"),
        (lambda lines: [lines[0], *lines[2:]], ":2 does not follow line 1"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], ":2 does not follow line 1"),
        (lambda lines: [lines[0], "garbage", *lines[2:]], ":3 does not follow line 2"),
        (lambda lines: lines[1:], "the lines before it are gone"),
        (lambda lines: lines[:-1], "has 3 lines, and 4 were written"),
        (lambda lines: [*lines[:-1], lines[-1].replace("a test", "a lie")], ":4 is not the line that was written"),
        (lambda _: [], "has 0 lines, and 4 were written"),
    ],
)
def test_a_changed_or_missing_line_is_found_also_after_the_next_entry(ledger, change, fault):
    rewrite(ledger, change)
    assert fault in "; ".join(chain.verify(ledger).faults)
    append(ledger, entry("deploy", "5"))
    assert chain.verify(ledger).faults


def test_without_the_head_nobody_knows_of_the_end(ledger):
    chain.head_file(ledger).unlink()
    assert "ledger.head is missing" in chain.verify(ledger).faults[0]


def test_a_command_killed_between_line_and_head_leaves_a_whole_ledger(ledger):
    head = chain.head_file(ledger).read_bytes()
    append(ledger, entry("deploy", "5"))
    chain.head_file(ledger).write_bytes(head)
    assert chain.verify(ledger).faults == ()
    append(ledger, entry("deploy", "6"))
    assert chain.verify(ledger).faults == ()


def test_a_line_that_was_cut_off_is_no_change(ledger):
    with ledger.open("a") as file:
        file.write('{"when": "2026-')
    append(ledger, entry("deploy", "5"))
    assert chain.verify(ledger).faults == ()
    rewrite(ledger, lambda lines: [*lines[:4], '{"when": "2027-', lines[5]])
    assert ":6 does not follow line 5" in chain.verify(ledger).faults[0]


def test_lines_from_before_the_chain_are_read_and_counted(tmp_path):
    path = tmp_path / "ledger.jsonl"
    old = [entry("deploy", version).model_dump_json(exclude={"previous"}) for version in "123"]
    path.write_text("".join(f"{line}\n" for line in old))
    assert (chain.verify(path).faults, chain.verify(path).num_unchained) == ((), 3)
    append(path, entry("deploy", "4"))
    # The fourth line vouches for the third.
    assert (chain.verify(path).faults, chain.verify(path).num_unchained) == ((), 2)
    assert len(read(path)) == 4
    rewrite(path, lambda lines: [*lines[:2], lines[2].replace("a test", "a lie"), lines[3]])
    assert ":4 does not follow line 3" in chain.verify(path).faults[0]
