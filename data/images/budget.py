DEFAULT_SECONDS = 30.0
"""Of one core for one image, where nobody waits for it."""


class OverBudgetError(Exception):
    """Reading an image takes more work than allowed; the message says what takes so long."""


class Budget:
    """Processor seconds that reading one image may take. Work is counted from above, before it is done."""

    __slots__ = ("_allowed", "_spent")

    def __init__(self, seconds: float) -> None:
        """Allow so many seconds of one core."""
        self._allowed = seconds
        self._spent = 0.0

    @property
    def spent(self) -> float:
        """Seconds counted so far."""
        return self._spent

    def spend(self, seconds: float, what: str) -> None:
        """Count work.

        Args:
            seconds: an upper bound of its processor time.
            what: names the work in a message.

        Raises:
            OverBudgetError: all work together exceeds the budget.

        """
        self._spent += seconds
        if self._spent > self._allowed:
            raise OverBudgetError(
                f"reading it may take more than {self._allowed:g} s of processor time, the limit ({what})"
            )
