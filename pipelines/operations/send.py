"""How a message reaches a receiver: Prefect's blocks for chats and webhooks, SMTP for e-mail."""

import smtplib
import ssl
import threading
import time
from collections.abc import Sequence
from email.message import EmailMessage
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from core.errors import one_line
from pipelines.operations.receivers import DISCORD, Event, Receiver

if TYPE_CHECKING:
    from prefect.blocks.abstract import NotificationBlock

SOCKET_SECONDS = 10
"""A receiver that says nothing for so long is given up."""
TOTAL_SECONDS = 30
"""And one that takes longer altogether, saying a byte now and then."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Message(BaseModel):
    """What receivers are told."""

    model_config = ConfigDict(frozen=True)

    event: Event
    subject: str
    body: str


def send_to_all(
    message: Message, receivers: Sequence[Receiver], seconds: float = TOTAL_SECONDS
) -> dict[str, str | None]:
    """Send a message to receivers at the same time; gives for each why it failed, or None.

    One that hangs keeps its thread, which ends with the process.
    """
    failures: dict[str, str | None] = {one.name: f"no answer within {seconds:g} s" for one in receivers}

    def send_one(receiver: Receiver) -> None:
        try:
            send(message, receiver)
            failures[receiver.name] = None
        # Whatever it is, it is told; a library's message may hold the address, which is a secret.
        except Exception as error:
            failures[receiver.name] = _without_secrets(one_line(error), receiver)

    threads = [threading.Thread(target=send_one, args=(one,), daemon=True) for one in receivers]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, give_up - time.monotonic()))
    return dict(failures)


def send(message: Message, receiver: Receiver) -> None:
    """Send a message.

    Raises:
        Exception: whatever the receiver's library raises.

    """
    if receiver.kind == "email":
        _send_mail(message, receiver)
    else:
        # A coroutine inside an event loop only.
        _block(message, receiver).notify(body=message.body, subject=message.subject)  # type: ignore[unused-coroutine]


def _block(message: Message, receiver: Receiver) -> "NotificationBlock":
    from prefect.blocks import notifications
    from pydantic import SecretStr

    address = receiver.address.get_secret_value()
    match receiver.kind:
        case "slack":
            block: NotificationBlock = notifications.SlackWebhook(url=receiver.address)
        case "teams":
            block = notifications.MicrosoftTeamsWebhook(url=receiver.address)
        case "discord":
            found = DISCORD.fullmatch(address)
            assert found is not None
            parts = {name: SecretStr(value) for name, value in found.groupdict().items()}
            block = notifications.DiscordWebhook(**parts)
        case _:
            content = {"event": message.event, "subject": "{{subject}}", "body": "{{body}}"}
            block = notifications.CustomWebhookNotificationBlock(
                name=receiver.name, url=address, json_data=content, timeout=SOCKET_SECONDS
            )
    block._raise_on_failure = True
    return block


def _send_mail(message: Message, receiver: Receiver) -> None:
    server = urlsplit(receiver.server.get_secret_value())
    host, address = server.hostname or "localhost", receiver.address.get_secret_value()
    user, password = unquote(server.username or ""), unquote(server.password or "")
    mail = EmailMessage()
    mail["Subject"], mail["To"] = message.subject, address
    mail["From"] = user if "@" in user else f"convoy@{address.partition('@')[2]}"
    mail.set_content(message.body)
    is_tls = server.scheme == "smtps"
    port = server.port or (465 if is_tls else 587)
    context = ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(host, port, timeout=SOCKET_SECONDS, context=context)
        if is_tls
        else smtplib.SMTP(host, port, timeout=SOCKET_SECONDS)
    ) as connection:
        connection.ehlo()
        if not is_tls and connection.has_extn("starttls"):
            connection.starttls(context=context)
            is_tls = True
        if user:
            if not is_tls and host not in LOOPBACK:
                raise ConnectionError(f"{host} offers no TLS: the password is not sent")
            connection.login(user, password)
        connection.send_message(mail)


def _without_secrets(text: str, receiver: Receiver) -> str:
    server = receiver.server.get_secret_value()
    for secret in (receiver.address.get_secret_value(), server, urlsplit(server).password or ""):
        text = text.replace(secret, "***") if secret else text
    return text
