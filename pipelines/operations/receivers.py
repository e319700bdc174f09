"""Who is told of what happens: receivers in a file that only its owner may read, as their addresses are secrets."""

import re
from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, TypeAdapter, ValidationError, field_serializer, model_validator

from core.errors import UserError
from core.files import whole_file
from pipelines.settings import OUTPUTS

RECEIVERS = OUTPUTS / "receivers.json"

Event = Literal["failure", "crash", "approval", "promotion", "rollback", "drift", "test"]
Kind = Literal["slack", "teams", "discord", "webhook", "email"]
EVENTS: tuple[Event, ...] = ("failure", "crash", "approval", "promotion", "rollback", "drift")

DISCORD = re.compile(
    r"https://(?:\w+\.)?discord(?:app)?\.com/api/webhooks/(?P<webhook_id>\d+)/(?P<webhook_token>[\w-]+)"
)
SLACK = re.compile(r"https://hooks\.slack(?:-gov)?\.com/services/\w+/\w+/\w+/?")


class Receiver(BaseModel):
    """One receiver of messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    address: SecretStr
    """the webhook's URL, or an e-mail address"""
    server: SecretStr = SecretStr("")
    """of e-mail: smtp://USER:PASSWORD@HOST:PORT, or smtps:// for TLS from the start"""
    events: tuple[Event, ...] = EVENTS

    @field_serializer("address", "server", when_used="json")
    def _reveal(self, secret: SecretStr) -> str:
        return secret.get_secret_value()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Receiver":
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise ValueError(f"{self.name!r} is no name: use small letters, digits and dashes")
        address = self.address.get_secret_value()
        if self.kind == "email":
            if not re.fullmatch(r"[^@\s]+@[^@\s]+", address):
                raise ValueError("this is no e-mail address")
            if urlsplit(self.server.get_secret_value()).scheme not in ("smtp", "smtps"):
                raise ValueError(
                    "e-mail needs --smtp smtp://USER:PASSWORD@HOST:PORT, or smtps:// for TLS from the start"
                )
        elif self.kind == "slack" and not SLACK.fullmatch(address):
            raise ValueError("this is no webhook of Slack: expected https://hooks.slack.com/services/...")
        elif self.kind == "discord" and not DISCORD.fullmatch(address):
            raise ValueError("this is no webhook of Discord: expected https://discord.com/api/webhooks/ID/TOKEN")
        elif urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise ValueError("this is no URL: expected https://...")
        return self


_LIST = TypeAdapter(tuple[Receiver, ...])


def read_receivers() -> tuple[Receiver, ...]:
    """Read the receivers; none where there is no file.

    Raises:
        UserError: the file is damaged.

    """
    try:
        return _LIST.validate_json(RECEIVERS.read_bytes())
    except FileNotFoundError:
        return ()
    except ValidationError:
        raise UserError(f"{RECEIVERS} is damaged: remove the file, and add its receivers again") from None


def write_receivers(receivers: Iterable[Receiver]) -> None:
    """Write the receivers, for their owner alone to read."""
    RECEIVERS.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(RECEIVERS) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(_LIST.dump_json(tuple(receivers), indent=1))


def make_receiver(name: str, kind: str, address: str, server: str, events: Iterable[str]) -> Receiver:
    """Make a receiver of what was typed; no event stands for all.

    Raises:
        UserError: it is none; says why, without the address.

    """
    content = {"name": name, "kind": kind, "address": address, "server": server, "events": tuple(events) or EVENTS}
    try:
        return Receiver.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        where = f"{fault['loc'][0]}: " if fault["loc"] else ""
        raise UserError(f"receiver {name}: {where}{message[0].lower()}{message[1:]}") from None
