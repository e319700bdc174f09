from collections.abc import Iterator

IN_NO_KEY = "What a person is told changes no result."


class UserError(Exception):
    """Error that the user can fix. The message says in one line what was wrong, where, and what to do.

    The command prints the message without a traceback and exits with `exit_code`: 2 for a wrong request (a wrong
    option, a missing folder), 1 for a failure (a full disk, a failed gate).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        """Keep `message` as the whole text of the error."""
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException) -> str:
    """Return a library's message in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, and so on to the innermost cause."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
