"""What the registry calls champion and previous, whatever is deployed and rolled back; the engine is a stand-in."""

from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from models.tracking.connection import connect
from models.tracking.registry import CHAMPION, PREVIOUS, Registry
from pipelines import releases
from pipelines.config import Config
from serving.config import ServingConfig
from serving.rollout import deploy
from serving.rollout.canary import RolloutConfig
from serving.rollout.containers import Container
from serving.rollout.deploy import Site
from serving.rollout.gateway import GatewayConfig, Routes
from serving.rollout.ledger import Release

NUM_VERSIONS = 4
CONFIG = Config()


class Engine:
    """Project and gateway at once: every container starts, and is ready unless its image is broken."""

    def __init__(self):
        self.started, self.in_use = [], Routes()

    def gateway(self):
        return self

    @contextmanager
    def lock(self):
        yield

    def routes(self):
        return self.in_use

    def change(self, routes, *_limits):
        self.in_use = routes

    def is_half_changed(self):
        return False

    def reaches(self, _name):
        return True

    def containers(self, _target):
        return list(self.started)

    def start_beside(self, _target, release, _num_new):
        new = Container(release.image_id, release.image, release, "running", "healthy", 0)
        self.started.append(new)
        return [new]

    def remember(self, _target, _release):
        pass

    def remove(self, containers):
        self.started = [one for one in self.started if one not in containers]


def wait_until_ready(containers, _seconds):
    if any("broken" in one.name for one in containers):
        raise UserError("is not healthy")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    client = connect(uri)
    registry = Registry(uri, CONFIG.registry.model_name)
    client.create_registered_model(registry.name)
    for _ in range(NUM_VERSIONS):
        client.create_model_version(registry.name, source="s3://nowhere/model")
    return registry


def release(version, build, broken=False):
    name = f"{version}-{build}{' broken' if broken else ''}"
    return Release(image=name, image_id=name, model_name=CONFIG.registry.model_name, model_version=str(version))


VERSION = st.integers(1, NUM_VERSIONS)
DEPLOY = st.tuples(st.just("deploy"), st.builds(release, VERSION, st.integers(0, 1), st.booleans()))
CHANGE = DEPLOY | st.tuples(st.just("roll back"), st.none()) | st.tuples(st.just("promote"), VERSION.map(str))


def version_of(registry, alias):
    found = registry.by_alias(alias)
    return found.version if found else None


@settings(max_examples=20, deadline=None)
@given(changes=st.lists(CHANGE, max_size=8))
def test_previous_is_what_was_live_before_after_any_deploys_and_rollbacks(tmp_path_factory, registry, changes):
    champion = registry.restore("1").version
    registry.name_previous(None)
    engine, ledger, live = Engine(), tmp_path_factory.mktemp("site") / "ledger.jsonl", []
    site = Site(engine, "cpu", ledger, ServingConfig(), RolloutConfig(), GatewayConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "LEDGER", ledger)
        patch.setattr(releases, "open_site", lambda _: site)
        patch.setattr(releases, "open_registry", lambda _: registry)
        patch.setattr(deploy, "restore_image", lambda _: None)
        patch.setattr(deploy, "remove", engine.remove)
        patch.setattr(deploy, "wait_until_ready", wait_until_ready)
        for what, value in changes:
            if what == "promote":
                registry.promote(registry.get(value))
                champion = value
                continue
            with suppress(UserError):
                if what == "deploy":
                    releases.roll_out(CONFIG, value, "a test", {})
                    live += [value] if live[-1:] != [value] else []
                else:
                    releases.roll_back(CONFIG, "a test")
                    left = live.pop()
                    champion = live[-1].model_version if champion == left.model_version else champion
                before = [one.model_version for one in live if one.model_version != live[-1].model_version]
                assert version_of(registry, PREVIOUS) == (before[-1] if before else None)
                assert version_of(registry, CHAMPION) == champion
            assert [one.release for one in engine.started] == live[-1:]
