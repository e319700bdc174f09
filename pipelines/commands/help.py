"""Additions to typer's `--help`: groups of commands, and examples."""

from typing import Any

from typer.core import TyperGroup

PIPELINE, MODELS, SERVING, PROJECT, SERVERS = (
    *("From images to an endpoint", "Models", "Serve and deploy"),
    *("The project", "Servers of a team"),
)
GROUPS = (PIPELINE, MODELS, SERVING, PROJECT, SERVERS)
"""Headings of the list of commands, in order."""


class GroupedCommands(TyperGroup):
    """Lists commands under the headings in their `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list for each heading. Commands without a heading come first."""
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
    """Return the end of a command's help. After a backspace, click does not wrap lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
