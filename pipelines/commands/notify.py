"""The commands about who is told: `convoy notify ...`."""

import sys
from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.help import examples

notify_app = typer.Typer(no_args_is_help=True, help="Say who is told of what happens.", rich_markup_mode=None)


@notify_app.command(
    "add",
    epilog=examples(
        "convoy notify add team slack https://hooks.slack.com/services/T0/B0/XYZ",
        "convoy notify add me email me@example.org --smtp smtps://robot:secret@mail.example.org",
        "convoy notify add bot webhook - < url.txt",
    ),
)
def notify_add(
    name: Annotated[str, typer.Argument(help="A name for the receiver; one that is there is replaced.")],
    kind: Annotated[str, typer.Argument(help="slack, teams, discord, webhook or email.")],
    address: Annotated[str, typer.Argument(help="Its URL, or an e-mail address; - reads it from stdin.")],
    smtp: Annotated[
        str, typer.Option(metavar="URL", help="Of e-mail: smtp(s)://USER:PASSWORD@HOST:PORT; - reads it from stdin.")
    ] = "",
    on: Annotated[
        list[str] | None,
        typer.Option(help="failure, crash, approval, promotion, rollback or drift; repeat it for several; else all."),
    ] = None,
) -> None:
    """Tell somebody of failures, crashes, approvals, promotions, rollbacks and drift."""
    from pipelines.operations.receivers import make_receiver, read_receivers, write_receivers

    receiver = make_receiver(name, kind, _from_stdin(address), _from_stdin(smtp), on or [])
    write_receivers([*(one for one in read_receivers() if one.name != name), receiver])
    print(f"{name} is told of {', '.join(receiver.events)}; try it with `convoy notify test {name}`")


def _from_stdin(value: str) -> str:
    return sys.stdin.readline().strip() if value == "-" else value


@notify_app.command("test")
def notify_test(name: Annotated[str | None, typer.Argument(help="The receiver; else all.")] = None) -> None:
    """Send a message now, and say whether it arrived."""
    from pathlib import Path

    from pipelines.operations.receivers import read_receivers
    from pipelines.settings import prepare_environment

    receivers = [one for one in read_receivers() if name in (None, one.name)]
    if not receivers:
        raise UserError(f"there is no receiver{f' {name}' if name else ''}: add one with `convoy notify add`")
    prepare_environment(Path())
    from pipelines.operations.send import Message, send_to_all

    message = Message(event="test", subject=f"Convoy, {Path().resolve().name}: a test", body="This message is a test.")
    failures = send_to_all(message, receivers)
    for receiver, failure in failures.items():
        print(f"{receiver}: {failure or 'sent'}")
    if any(failures.values()):
        raise UserError("not every receiver took the message", exit_code=1)


@notify_app.command("list")
def notify_list() -> None:
    """List the receivers, without their addresses."""
    from pipelines.operations.receivers import read_receivers

    for one in read_receivers():
        print(f"{one.name:12} {one.kind:8} {', '.join(one.events)}")


@notify_app.command("remove")
def notify_remove(name: Annotated[str, typer.Argument(help="The receiver.")]) -> None:
    """Tell somebody nothing any more."""
    from pipelines.operations.receivers import read_receivers, write_receivers

    receivers = read_receivers()
    if name not in {one.name for one in receivers}:
        raise UserError(f"there is no receiver {name}; `convoy notify list` lists them")
    write_receivers(one for one in receivers if one.name != name)
