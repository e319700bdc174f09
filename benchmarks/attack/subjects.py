"""Attacked servers: Convoy's endpoint, in a process and in the container for `edge`, and its peers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.attack.watch import Watch
from benchmarks.serve_container import OPEN, container
from benchmarks.serve_load import Call, answers
from benchmarks.serve_servers import Running, Server, convoy, peers, running
from core.errors import UserError
from serving.config import ServingConfig
from serving.packaging.bento import build_bento
from serving.packaging.image import Image, build_image
from serving.rollout.docker import docker
from serving.targets import TARGETS

CONVOY, CONTAINER, BENTOML, FLOOR = "Convoy", "Convoy in 256 MB", "BentoML", "Starlette + onnxruntime"


class Subject:
    """Server that is attacked repeatedly. It is restarted if it exits or does not answer any more."""

    def __init__(self, name: str, start: Callable[[], "Iterator[Running]"], images: Sequence[bytes]) -> None:
        """Take the function that starts the server, and the images of the legitimate clients."""
        self.name, self._start, self._images = name, contextmanager(start), images
        self._stack = ExitStack()

    def __enter__(self) -> "Subject":
        """Start the server."""
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._end()

    def call(self) -> Call:
        """Return the requests of the legitimate clients."""
        return self._running.call(self._images)

    def watch(self) -> Watch:
        """Return a watch over the server's processes."""
        return Watch(self._running.process)

    def recover(self) -> None:
        """Restart the server unless it answers."""
        if not answers(self._running.port, self._running.server.ready):
            self._end()
            self._begin()

    def _begin(self) -> None:
        self._running = self._stack.enter_context(self._start())

    def _end(self) -> None:
        # A server that is still busy would not stop in an orderly way, or only much later.
        with suppress(psutil.Error):
            for process in self._running.family():
                process.kill()
        self._stack.close()


@contextmanager
def subjects(model: Path, scratch: Path, images: Sequence[bytes]) -> Iterator[list[Subject]]:
    """Start all servers for the length of the block. Without a Docker engine, there is no container."""
    ours = convoy(model, scratch, "cpu")[0]
    servers = [ours, *(peer for peer in peers(model, scratch) if peer.name in (FLOOR, BENTOML))]
    found = [
        Subject(server.name, _process(server, scratch / f"{number}.log"), images)
        for number, server in enumerate(servers)
    ]
    with ExitStack() as stack:
        if has_engine():
            image = build_image(build_bento(model, ServingConfig(target="edge"), scratch / "edge"))
            stack.callback(docker, "image", "rm", "--force", image.tag)
            found.insert(1, Subject(CONTAINER, _contained(image, ours), images))
        yield [stack.enter_context(subject) for subject in found]


def has_engine() -> bool:
    """Whether a Docker engine answers."""
    try:
        docker("version", timeout=30)
    except UserError:
        return False
    return True


def _process(server: Server, log: Path) -> Callable[[], Iterator[Running]]:
    def start() -> Iterator[Running]:
        with running(server, log) as started:
            yield started

    return start


def _contained(image: Image, server: Server) -> Callable[[], Iterator[Running]]:
    def start() -> Iterator[Running]:
        with container(image, TARGETS["edge"], *OPEN) as started:
            process = psutil.Process(int(str(started.state()["Pid"])))
            yield Running(server, started.port, process, started.start_seconds)

    return start
