"""What `--help` shows beyond typer's own: commands in groups, and examples to type."""

from typing import Any

from typer.core import TyperGroup

PIPELINE, MODELS, SERVING, PROJECT, SERVERS = (
    *("From images to an endpoint", "Models", "Serve and deploy"),
    *("The project", "Servers of a team"),
)
GROUPS = (PIPELINE, MODELS, SERVING, PROJECT, SERVERS)
"""Headings of the list of commands, in its order."""


class GroupedCommands(TyperGroup):
    """Lists its commands under the headings that they name by `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list for each heading; a command without one comes first."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in commands)
        for heading in (None, *GROUPS):
            rows = [
                (name.ljust(width), command.get_short_help_str(120))
                for name, command in commands
                if getattr(command, "rich_help_panel", None) == heading
            ]
            if rows:
                with formatter.section(heading or "Commands"):
                    formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """Give the end of a command's help; after a backspace click leaves lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
