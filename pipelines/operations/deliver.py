"""The process that sends what waits in the outbox: `python -m pipelines.operations.deliver`."""

import os
import time
from pathlib import Path

from pydantic import ValidationError

from pipelines.operations.notices import OUTBOX
from pipelines.operations.receivers import read_receivers
from pipelines.operations.send import Message, send_to_all
from pipelines.settings import OUTPUTS, prepare_environment

LOG = OUTPUTS / "notify.log"
MAX_AGE_SECONDS = 86_400
"""An older message is no news."""


def deliver() -> None:
    """Send each message once, and write down what became of it."""
    for path in sorted(OUTBOX.glob("*.json")):
        message = _take(path)
        if message:
            wanted = [one for one in read_receivers() if message.event in one.events]
            for name, failure in send_to_all(message, wanted).items():
                _note(f"{name}: {message.event}: {failure or 'sent'}")


def _take(path: Path) -> Message | None:
    """Read a message and take it out of the outbox, so that no other process sends it too."""
    mine = path.with_suffix(f".{os.getpid()}")
    try:
        path.rename(mine)
        is_new = time.time() - mine.stat().st_mtime < MAX_AGE_SECONDS
        message = Message.model_validate_json(mine.read_bytes())
        mine.unlink()
    except (FileNotFoundError, ValidationError):
        return None
    return message if is_new else None


def _note(line: str) -> None:
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


if __name__ == "__main__":
    prepare_environment(Path())
    deliver()
    # Not waiting for the thread of a receiver that hangs.
    os._exit(0)
