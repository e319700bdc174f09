"""Telling people: what happens is written down, and a process of its own sends it, so that no receiver holds us up."""

import logging
import subprocess
import sys
import time
import uuid

from core.errors import UserError
from core.files import whole_file
from pipelines.operations.receivers import Event, read_receivers
from pipelines.operations.send import Message
from pipelines.settings import OUTPUTS
from pipelines.workspace import ROOT
from serving.rollout.ledger import Entry, What

OUTBOX = OUTPUTS / "outbox"
"""Messages on their way; one that a full disk or a shutdown kept there goes with the next."""

EVENT_OF: dict[What, Event] = {
    "wait": "approval",
    "promote": "promotion",
    "deploy": "promotion",
    "rollback": "rollback",
    "withdraw": "rollback",
}
"""What of the ledger somebody is told, and as what."""

_log = logging.getLogger("convoy")


def tell(event: Event, subject: str, body: str) -> None:
    """Tell the receivers of an event; returns at once, and never stops what happens."""
    try:
        if not any(event in one.events for one in read_receivers()):
            return
        OUTBOX.mkdir(parents=True, exist_ok=True)
        message = Message(event=event, subject=f"Convoy, {ROOT.resolve().name}: {subject}", body=body)
        with whole_file(OUTBOX / f"{time.time_ns()}-{uuid.uuid4().hex}.json") as temporary:
            temporary.write_text(message.model_dump_json(), encoding="utf-8")
        # The shell ends at once, and leaves the process to the system.
        command = [
            "sh",
            "-c",
            '"$@" >/dev/null 2>&1 &',
            "sh",
            sys.executable,
            "-P",
            "-m",
            "pipelines.operations.deliver",
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, start_new_session=True)
    except (OSError, UserError, subprocess.CalledProcessError) as error:
        _log.warning("notify: nobody is told of this %s: %s", event, error)


def tell_entry(entry: Entry) -> None:
    """Tell the receivers of an entry of the ledger, where it is something that people wait for."""
    if event := EVENT_OF.get(entry.what):
        place = entry.target or "registry"
        tell(event, f"{entry.what} of {entry.to or 'nothing'} ({place})", str(entry))
