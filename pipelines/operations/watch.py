"""The watched folder: looks at the source, and starts a run when its images have changed and stay as they are."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.errors import UserError, one_line
from data.sources.registry import open_source
from pipelines.config import Config

_log = logging.getLogger("convoy")


class Watch:
    """Looks at the source again and again; calls `start` once for changes that come together."""

    def __init__(self, config: Config, start: Callable[[], None]) -> None:
        """Watch `data.path`; the first look counts as a change: nobody looked before."""
        self._config, self._start = config, start
        self._before: str | None = None
        self._started_for: str | None = None
        self._is_told = False

    def look(self) -> None:
        """Look once: what was there before too, and has led to no run yet, leads to one."""
        try:
            now = open_source(self._config.data).fingerprint()
            self._is_told = False
            if now == self._before != self._started_for:
                self._start()
                self._started_for = now
            self._before = now
        except UserError as error:
            # A folder on a network comes back.
            if not self._is_told:
                _log.warning("watch: %s; it is looked at again", one_line(error))
            self._is_told = True


@contextmanager
def watching(config: Config, start: Callable[[], None]) -> Iterator[None]:
    """Watch in a thread while the block runs, where `automation.watch` says so."""
    if not config.automation.watch:
        yield
        return
    watch, ended = Watch(config, start), threading.Event()

    def look_until_ended() -> None:
        while not ended.wait(config.automation.watch_seconds):
            watch.look()

    thread = threading.Thread(target=look_until_ended, name="watch", daemon=True)
    thread.start()
    _log.info("watch: looks at %s every %g s", config.data.path, config.automation.watch_seconds)
    try:
        yield
    finally:
        ended.set()
        thread.join(1)
