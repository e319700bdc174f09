"""The container of an endpoint at the edge is attacked: 256 MB and one core, and nobody who would start it again."""

from collections.abc import Iterator
from pathlib import Path

import attacks
import pytest
from test_serving_classifier import make_model

from benchmarks.serve_container import OPEN, Container, container
from models.exported.predictor import read_model_manifest
from models.tracking.registry import write_manifest
from serving.config import ServingConfig
from serving.packaging.bento import build_bento
from serving.packaging.image import build_image
from serving.rollout.docker import docker
from serving.targets import TARGETS

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

EDGE = TARGETS["edge"]
FILES = ("--ulimit", f"nofile={attacks.FILES}:{attacks.FILES}")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory, engine: None) -> Iterator[Container]:
    folder: Path = tmp_path_factory.mktemp("attacked")
    model = make_model(folder / "model", max_pixels=50_000_000)
    write_manifest(model, read_model_manifest(model).model_copy(update={"name": "attacked image"}))
    image = build_image(build_bento(model, ServingConfig(target="edge"), folder / "store"))
    try:
        with container(image, EDGE, *OPEN, *FILES) as started:
            yield started
    finally:
        docker("image", "rm", "--force", image.tag)


@pytest.fixture
def port(attacked: Container) -> Iterator[int]:
    """Where it listens; after the test it still runs, was never short of memory, and is healthy."""
    before = attacked.state()
    yield attacked.port
    after = attacked.state()
    assert (after["Running"], after["OOMKilled"], after["Pid"]) == (True, False, before["Pid"])
    assert attacked.memory_bytes() < EDGE.memory_mb * 1e6


def test_requests_without_an_end_do_not_end_it(port):
    attacks.check_endless_requests(port)


def test_slow_and_silent_clients_do_not_end_it(port):
    attacks.check_slow_clients(port)


def test_requests_that_pile_up_do_not_end_it(port):
    attacks.check_pipelined_requests(port)


def test_clients_that_do_not_back_off_do_not_end_it(port):
    attacks.check_overload(port)
