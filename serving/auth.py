import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from data.errors import UserError

TOKENS = "CONVOY_TOKENS"
TOKENS_FILE = "CONVOY_TOKENS_FILE"
"""Environment variables: the hashes themselves, or the file that holds them."""
ALLOW_ANONYMOUS = "CONVOY_ALLOW_ANONYMOUS"
"""Environment variable: `true` lets an endpoint be open to other machines without a token."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Tokens:
    """The bearer tokens that open an endpoint, as hashes: who reads them can open nothing.

    One round of SHA-256 is enough here, where it would not be for a password: nobody guesses 256 random bits.
    """

    def __init__(self, hashes: frozenset[str] = frozenset()) -> None:
        self._hashes = tuple(bytes.fromhex(one) for one in hashes)

    def __bool__(self) -> bool:
        """Whether there are any: without, nobody is asked for one."""
        return bool(self._hashes)

    def admits(self, authorization: str | None) -> bool:
        """Whether the value of the header `Authorization` is `Bearer` and one of the tokens; as quick for any other."""
        scheme, _, token = (authorization or "").partition(" ")
        presented = hashlib.sha256(token.strip().encode()).digest()
        # All are compared: the time must not tell how far one has come.
        found = sum(hmac.compare_digest(presented, known) for known in self._hashes)
        return scheme.lower() == "bearer" and found > 0


def read_tokens(environment: Mapping[str, str]) -> Tokens:
    """Read the hashes in `CONVOY_TOKENS` and in the file that `CONVOY_TOKENS_FILE` names.

    Each is a SHA-256 in hexadecimal, on a line of its own or after a comma; a name may follow it, and `#` starts a
    comment.

    Raises:
        UserError: the file cannot be read or is empty, or an entry is no hash; an endpoint that is meant to be closed
            must not open.

    """
    hashes = _parse(environment.get(TOKENS, ""), TOKENS)
    if name := environment.get(TOKENS_FILE):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"{TOKENS_FILE}={name} cannot be read: {reason}") from None
        from_file = _parse(text, f"{TOKENS_FILE}={name}")
        if not from_file:
            raise UserError(f"{TOKENS_FILE}={name} holds no token: add a line that `convoy token` prints")
        hashes |= from_file
    return Tokens(hashes)


def new_token(name: str = "") -> tuple[str, str]:
    """Make a token of 256 random bits, and the line for the tokens file that admits it."""
    token = secrets.token_urlsafe(32)
    return token, f"{hashlib.sha256(token.encode()).hexdigest()} {name}".strip()


def require_protection(address: str, tokens: Tokens, *, allow_anonymous: bool) -> None:
    """Refuse to listen where other machines can reach, with no token and without the explicit choice to do so.

    Raises:
        UserError: the numeric `address` is not a loopback one, there are no tokens, and `allow_anonymous` is false.

    """
    if tokens or allow_anonymous or ipaddress.ip_address(address).is_loopback:
        return
    raise UserError(
        f"other machines can reach {address}, and no token is asked for: make one with `convoy token` and name its "
        f"file in {TOKENS_FILE}, or open the endpoint to everyone with --set serving.allow_anonymous=true (in a "
        f"container: {ALLOW_ANONYMOUS}=true)"
    )


def _parse(text: str, where: str) -> frozenset[str]:
    lines = (line.partition("#")[0].strip() for line in text.replace(",", "\n").splitlines())
    hashes = frozenset(line.split()[0].lower() for line in lines if line)
    # The entry itself is not told: it may be a token, put where its hash belongs.
    if not all(map(_SHA256.fullmatch, hashes)):
        raise UserError(f"{where}: expected the SHA-256 of a token, 64 hexadecimal digits, as `convoy token` prints it")
    return hashes
