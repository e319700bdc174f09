DEFAULT_SECONDS = 30.0
"""CPU time for one image, where no client waits for an answer."""


class OverBudgetError(Exception):
    """Reading an image takes more CPU time than allowed. The message names the costly part."""


class Budget:
    """CPU seconds that reading one image may take. Work is counted before it is done, by an upper bound."""

    __slots__ = ("_allowed", "_spent")

    def __init__(self, seconds: float) -> None:
        """Allow `seconds` of one core."""
        self._allowed = seconds
        self._spent = 0.0

    @property
    def spent(self) -> float:
        """Seconds counted so far."""
        return self._spent

    def spend(self, seconds: float, what: str) -> None:
        """Count work.

        Args:
            seconds: upper bound of the work's CPU time.
            what: name of the work, for the message.

        Raises:
            OverBudgetError: the sum of all work exceeds the budget.

        """
        self._spent += seconds
        if self._spent > self._allowed:
            raise OverBudgetError(
                f"reading it may take more than {self._allowed:g} s of processor time, the limit ({what})"
            )
