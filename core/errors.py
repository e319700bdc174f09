from collections.abc import Iterator

IN_NO_KEY = "What a person is told changes no result."


class UserError(Exception):
    """Something that the person at the keyboard can mend: what was wrong, where, and what to do, in one line.

    The command prints it without a traceback and ends with `exit_code`: 2 for what was asked (a wrong option, a missing
    folder), 1 for what happened (a full disk, a failed gate).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        """Keep `message` as the whole text of the error."""
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException) -> str:
    """Put what a library has said into one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error, what it came from, and so on to the innermost."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
