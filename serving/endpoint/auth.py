import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from core.errors import UserError

TOKENS = "CONVOY_TOKENS"
TOKENS_FILE = "CONVOY_TOKENS_FILE"
"""Environment variables for the hashes themselves, or for the file with the hashes."""
ALLOW_ANONYMOUS = "CONVOY_ALLOW_ANONYMOUS"
"""Environment variable. `true` opens an endpoint to other machines without a token."""

LOOK_SECONDS = 1.0
"""Interval between two checks whether the file has changed."""
MAX_NAME = 64
"""Maximum length of a token's name in metrics and in the log."""

logger = logging.getLogger("convoy")

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Tokens:
    """Bearer tokens of an endpoint, stored as hashes, which open nothing by themselves.

    One round of SHA-256 is enough, unlike for a password, because nobody can guess 256 random bits.
    """

    def __init__(self, given: Mapping[str, str] | None = None, file: Path | None = None) -> None:
        """Take names by their hashes, and a file with more names, which is read again when it changes.

        Raises:
            UserError: the file cannot be read or is empty, or an entry is no hash.

        """
        self._given, self._file = dict(given or {}), file
        self._looked_at = time.monotonic()
        self._stamp = _stamp(file) if file else None
        self._names = self._read()

    def __bool__(self) -> bool:
        """Whether there are tokens. Without tokens, clients need none."""
        return bool(self._names)

    def find(self, authorization: bytes) -> str | None:
        """Return the name of the token in a header `Authorization`: `Bearer` and the token. None for an unknown token.

        The duration does not depend on the value.
        """
        self._look()
        scheme, _, token = authorization.partition(b" ")
        presented = hashlib.sha256(token.strip()).digest()
        # Compare all tokens, so that the duration does not reveal a match.
        found = [name for known, name in self._names.items() if hmac.compare_digest(presented, known)]
        return found[0] if found and scheme.lower() == b"bearer" else None

    def _look(self) -> None:
        """Read the file again if it has changed. An invalid file changes nothing, and is logged once."""
        now = time.monotonic()
        if self._file is None or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._names = self._read()
        except UserError as error:
            logger.error("%s; the tokens that were read before stay in use", error)  # noqa: TRY400 - a trace says no more

    def _read(self) -> dict[bytes, str]:
        names = self._given | (_read_file(self._file) if self._file else {})
        return {bytes.fromhex(one): name for one, name in names.items()}


def read_tokens(environment: Mapping[str, str]) -> Tokens:
    """Read the hashes in `CONVOY_TOKENS` and in the file that `CONVOY_TOKENS_FILE` names.

    Each hash is a SHA-256 in hexadecimal, on its own line or after a comma. A name may follow the hash. `#` starts a
    comment.

    Raises:
        UserError: the file cannot be read or is empty, or an entry is no hash. The endpoint must then stay closed.

    """
    name = environment.get(TOKENS_FILE)
    return Tokens(_parse(environment.get(TOKENS, ""), TOKENS), Path(name) if name else None)


def new_token(name: str = "") -> tuple[str, str]:
    """Make a token of 256 random bits, and its line for the tokens file."""
    token = secrets.token_urlsafe(32)
    return token, f"{hashlib.sha256(token.encode()).hexdigest()} {name}".strip()


def require_protection(address: str, tokens: Tokens, *, allow_anonymous: bool) -> None:
    """Refuse to listen on an address that other machines can reach, without tokens and without explicit permission.

    Raises:
        UserError: the numeric `address` is no loopback address, there are no tokens, and `allow_anonymous` is false.

    """
    if tokens or allow_anonymous or ipaddress.ip_address(address).is_loopback:
        return
    raise UserError(
        f"other machines can reach {address}, and no token is asked for: make one with `convoy token` and name its "
        f"file in {TOKENS_FILE}, or open the endpoint to everyone with --set serving.allow_anonymous=true (in a "
        f"container: {ALLOW_ANONYMOUS}=true)"
    )


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Return values that change when a file changes, or None if the file is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_file(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{TOKENS_FILE}={file} cannot be read: {reason}") from None
    if names := _parse(text, f"{TOKENS_FILE}={file}"):
        return names
    raise UserError(f"{TOKENS_FILE}={file} holds no token: add a line that `convoy token` prints")


def _parse(text: str, where: str) -> dict[str, str]:
    """Return the names by their hashes. A token without a name is named after the start of its hash."""
    lines = (line.partition("#")[0].strip() for line in text.replace(",", "\n").splitlines())
    entries = [line.split(maxsplit=1) for line in lines if line]
    # The message omits the entry, which may be a token instead of its hash.
    if not all(_SHA256.fullmatch(entry[0].lower()) for entry in entries):
        raise UserError(f"{where}: expected the SHA-256 of a token, 64 hexadecimal digits, as `convoy token` prints it")
    return {one.lower(): (rest[0] if rest else one[:8].lower())[:MAX_NAME] for one, *rest in entries}
