import hashlib

import pytest
from test_serving_app import sender
from test_serving_classifier import BLUE, OCTETS, make_model

from core.errors import UserError
from serving.endpoint import auth
from serving.endpoint.auth import Tokens, new_token, read_tokens, require_protection
from serving.endpoint.classifier import Classifier

NOT_ASCII = {b"authorization": b"Bearer \xff\xfe"}


def test_a_token_opens_all_that_is_not_open_anyway(tmp_path):
    classifier = Classifier(make_model(tmp_path))
    token, line = new_token("a colleague")
    tokens = read_tokens({"CONVOY_TOKENS": f"{'0' * 64}, {line}"})
    send = sender(lambda: classifier, tokens=tokens)
    for path in ("/", "/page.js", "/tiles.js", "/page.css", "/metrics"):
        assert send("GET", path).status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {token}"},
        NOT_ASCII,
    ):
        for path in ("/model", "/examples", "/openapi.json", "/nothing"):
            response = send("GET", path, headers=headers)
            assert (response.status_code, response.json()["error"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
    granted = {"authorization": f"bearer {token}"}
    assert send("GET", "/model", headers=granted).status_code == 200
    assert send("POST", "/classify", content=BLUE, headers=OCTETS | granted).status_code == 200


def test_any_of_several_tokens_is_admitted(tmp_path):
    pairs = [new_token(name) for name in ("ann", "", "bob # on leave")]
    assert len({token for token, _ in pairs}) == 3
    file = tmp_path / "tokens"
    file.write_text("# who may\n\n" + "\n".join(line.upper() for _, line in pairs[:2]))
    tokens = read_tokens({"CONVOY_TOKENS_FILE": str(file), "CONVOY_TOKENS": pairs[2][1]})
    assert [tokens.find(f"Bearer {token}".encode()) for token, _ in pairs] == ["ANN", pairs[1][1][:8], "bob"]
    for header in ("", "Bearer", "Bearer ", f"Bearer {pairs[0][1]}", pairs[0][0]):
        assert tokens.find(header.encode()) is None


def test_tokens_are_read_again_when_their_file_changes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(auth, "LOOK_SECONDS", 0.0)
    (old, old_line), (new, new_line) = new_token("ann"), new_token("bob")
    file = tmp_path / "tokens"
    file.write_text(old_line)
    tokens = read_tokens({"CONVOY_TOKENS_FILE": str(file)})

    def found() -> list[str | None]:
        return [tokens.find(f"Bearer {token}".encode()) for token in (old, new)]

    assert found() == ["ann", None]
    file.write_text(f"{old_line}\n{new_line}")
    assert found() == ["ann", "bob"]
    # As Kubernetes does: another file takes its place.
    (tmp_path / "next").write_text(new_line)
    (tmp_path / "next").replace(file)
    assert found() == [None, "bob"]
    assert not caplog.records
    for wrong in ("hunter2", "", new_line[:40]):
        caplog.clear()
        file.write_text(wrong)
        assert [found() for _ in range(3)] == [[None, "bob"]] * 3
        (line,) = caplog.messages
        assert line.endswith("; the tokens that were read before stay in use")
        assert "hunter2" not in line
    caplog.clear()
    file.unlink()
    assert [found() for _ in range(3)] == [[None, "bob"]] * 3
    assert len(caplog.records) == 1
    file.write_text(old_line)
    assert found() == ["ann", None]


def test_the_hash_is_what_sha256sum_gives():
    token, line = new_token("ann")
    assert line == f"{hashlib.sha256(token.encode()).hexdigest()} ann"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no token"),
        (b"# nobody\n", "holds no token"),
        (b"\xff\xfe", "cannot be read: it is not text"),
        (b"hunter2", "expected the SHA-256 of a token"),
    ],
)
def test_a_tokens_file_that_is_wrong_opens_nothing(tmp_path, content, message):
    file = tmp_path / "tokens"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_tokens({"CONVOY_TOKENS_FILE": str(file)})
    assert "hunter2" not in str(error.value)


def test_without_tokens_only_this_machine_is_served():
    for address in ("127.0.0.1", "127.1.2.3", "::1"):
        require_protection(address, Tokens(), allow_anonymous=False)
    for address in ("0.0.0.0", "::", "192.0.2.1", "2001:db8::1"):
        with pytest.raises(UserError, match="no token is asked for: make one with `convoy token`"):
            require_protection(address, Tokens(), allow_anonymous=False)
        require_protection(address, Tokens(), allow_anonymous=True)
        require_protection(address, read_tokens({"CONVOY_TOKENS": "0" * 64}), allow_anonymous=False)
