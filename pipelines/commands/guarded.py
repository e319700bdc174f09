"""How a command ends when something is wrong: in one line, without a traceback, where a person can mend the cause."""

import signal
import sys
from pathlib import Path
from typing import Any

import typer

from core.errors import UserError
from pipelines.commands.help import GroupedCommands


class Guarded(GroupedCommands):
    """Ends with one line, without a traceback, for every error that the user can fix."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. SIGTERM, which a system sends when it shuts down, acts like Ctrl-C."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("stopped; what was finished is kept: the same command goes on from there")
        except UserError as error:
            _fail(str(error), error.exit_code)
        except BaseException as error:
            if _is_signal(error):
                _fail("stopped; what was finished is kept: the same command goes on from there")
            from core.files import is_disk_full

            if not is_disk_full(error):
                raise
            _fail(f"the disk of {Path.cwd()} is full: free some space, and the same command goes on")


def _fail(message: str, exit_code: int = 1) -> None:
    print(f"convoy: {message}", file=sys.stderr)
    raise typer.Exit(exit_code)


def _is_signal(error: BaseException) -> bool:
    """Whether an error is Prefect's exception for SIGTERM."""
    return type(error).__name__ == "TerminationSignal"
