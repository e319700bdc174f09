"""Rollout and rollback of a release without a failed request.

The gateway's routes say what is live. The ledger says what was live. A command that was killed may leave a change half
done; the next command repairs that first.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from core.errors import UserError, one_line
from serving.config import ServingConfig
from serving.rollout import ledger
from serving.rollout.canary import Answered, Figures, Judgement, RolloutConfig, judge_canary
from serving.rollout.containers import Container, Project, name_of, remove, restore_image, wait_until_ready
from serving.rollout.gateway import Gateway, GatewayConfig, Route
from serving.rollout.ledger import Entry, Release, What

LOOK_SECONDS = 1.0
"""Interval between two checks of a canary."""

_log = logging.getLogger("convoy")


@dataclass(frozen=True)
class Site:
    """Stack in which releases of one target go live."""

    project: Project
    target: str
    ledger: Path
    serving: ServingConfig
    rollout: RolloutConfig
    gateway: GatewayConfig

    @contextmanager
    def locked(self) -> Iterator["Change"]:
        """Lock the gateway, and repair what a killed command left half done.

        Raises:
            UserError: another command is deploying.

        """
        gateway = self.project.gateway()
        with gateway.lock():
            change = Change(self, gateway)
            change.repair()
            yield change


def roll_out(
    site: Site, release: Release, *, why: str, figures: Mapping[str, float], percent: float | None = None
) -> Entry | None:
    """Replace the live release. With `percent`, first run the new release as a canary on this share of the requests.

    Returns None if the release is live already.

    Raises:
        UserError: the release did not become ready and got no request, or was withdrawn as a canary. The old one stays.

    """
    with site.locked() as change:
        if any(one.is_up and one.release.image_id == release.image_id for one in change.live):
            _log.info("deploy: skipped, %s is live", release)
            return None
        if percent and not change.live:
            _log.info("deploy: there is nothing that a canary could be held against: it gets all requests")
            percent = None
        return change.bring(release, "deploy", why, figures, percent)


def roll_back(site: Site, why: str) -> Entry:
    """Bring back the previous release.

    Raises:
        UserError: there is no previous release, its image was removed, or it did not become ready. The live one stays.

    """
    with site.locked() as change:
        live = ledger.history(ledger.read(site.ledger, site.target))
        if len(live) < 2:
            now = f"{live[-1]} is the first that is known" if live else "nothing has been deployed"
            raise UserError(f"there is nothing to roll {site.target} back to: {now}", exit_code=1)
        restore_image(live[-2])
        return change.bring(live[-2], "rollback", why, {})


class Change:
    """One change of the live release, while the gateway is locked."""

    def __init__(self, site: Site, gateway: Gateway) -> None:
        """Read the target's route."""
        self._site, self._gateway = site, gateway
        self._route = gateway.routes().targets.get(site.target)
        self.live: list[Container] = []

    def repair(self) -> None:
        """Clean up after a killed command: end its canary, remove unused containers, complete the ledger."""
        site, route = self._site, self._route
        found = site.project.containers(site.target)
        self.live = [one for one in found if route and name_of(site.target, one.release) == route.stable]
        left = [one for one in found if one not in self.live]
        if route and (route.canary or self._gateway.is_half_changed()):
            self._direct(Route(stable=route.stable))
            if route.canary:
                self._record("withdraw", left[0].release if left else None, "its command was stopped", {})
        if left:
            _log.info("deploy: removing %s, left by a command that was stopped", ", ".join(one.name for one in left))
            remove(left)
        if self.live:
            self._complete_ledger(self.live[0].release)

    def _complete_ledger(self, release: Release) -> None:
        known = ledger.history(ledger.read(self._site.ledger, self._site.target))
        if not known or known[-1].image_id != release.image_id:
            is_back = len(known) > 1 and known[-2].image_id == release.image_id
            entry = Entry(
                what="rollback" if is_back else "deploy",
                target=self._site.target,
                before=known[-1] if known else None,
                to=release,
                why="found live: the command that brought it was stopped before it could write this",
            )
            ledger.append(self._site.ledger, entry)
        self._site.project.remember(self._site.target, release)

    def bring(
        self, release: Release, what: What, why: str, figures: Mapping[str, float], percent: float | None = None
    ) -> Entry:
        """Start a release beside the live one, switch the requests over, and remove the old containers."""
        site, old = self._site, list(self.live)
        new: list[Container] = []
        try:
            new += site.project.start_beside(site.target, release, max(1, len(old)))
            self._require_ready(release, new)
            if percent:
                judgement, figures = self._try(release, new, percent, figures)
                what, why = "promote", f"{why}; {judgement.why}"
            self._direct(Route(stable=name_of(site.target, release)))
        except BaseException as error:
            self._abandon(release, new, error)
            raise
        entry = self._record(what, release, why, figures)
        site.project.remember(site.target, release)
        self.live = new
        remove(old)
        return entry

    def _require_ready(self, release: Release, new: list[Container]) -> None:
        _log.info("deploy: %s starts as %s", release, ", ".join(one.name for one in new))
        wait_until_ready(new, self._site.rollout.ready_seconds)
        if not self._gateway.reaches(name_of(self._site.target, release)):
            raise UserError(f"{new[0].name} is ready, but the gateway does not reach it", exit_code=1)
        _log.info("deploy: %s is ready", release)

    def _try(
        self, release: Release, new: list[Container], percent: float, figures: Mapping[str, float]
    ) -> tuple[Judgement, dict[str, float]]:
        """Run a release as a canary on `percent` of the requests until a decision.

        Raises:
            UserError: the canary is withdrawn.

        """
        assert self._route is not None
        name, stable = name_of(self._site.target, release), self._route.stable
        self._direct(Route(stable=stable, canary=name, percent=percent))
        self._record("canary", release, f"{percent:g} % of the requests", figures)
        # Discard earlier answers: both releases are measured from here on.
        self._gateway.answered()
        started, answers = time.monotonic(), []
        while True:
            time.sleep(LOOK_SECONDS)
            answers += self._gateway.answered()
            wait_until_ready(new, self._site.rollout.ready_seconds)
            mine, old = _figures(answers, name), _figures(answers, stable)
            judgement = judge_canary(mine, old, time.monotonic() - started, self._site.rollout)
            if judgement.verdict == "promote":
                return judgement, {**figures, **_flat("canary", mine), **_flat("stable", old)}
            if judgement.verdict == "withdraw":
                raise UserError(judgement.why, exit_code=1)

    def _abandon(self, release: Release, new: list[Container], error: BaseException) -> None:
        """Return all requests to the old release, remove the new one, and record that in the ledger."""
        site = self._site
        route = self._gateway.routes().targets.get(site.target)
        had_requests = bool(route and name_of(site.target, release) in (route.stable, route.canary))
        why = one_line(error) if isinstance(error, UserError) else "stopped by hand"
        if had_requests and self._route:
            self._direct(Route(stable=self._route.stable))
        remove(new or [one for one in site.project.containers(site.target) if one not in self.live])
        self._record("withdraw" if had_requests else "failed", release, why, {})
        stays = f"{self.live[0].release} stays live" if self.live else "nothing is live"
        _log.info("deploy: %s was %s; %s", release, "withdrawn" if had_requests else "given up", stays)

    def _direct(self, route: Route) -> None:
        routes = self._gateway.routes().with_route(self._site.target, route)
        share = f", {route.percent:g} % of them to {route.canary}" if route.canary else ""
        _log.info("deploy: requests go to %s%s", route.stable, share)
        self._gateway.change(routes, self._site.serving, self._site.gateway)

    def _record(self, what: What, release: Release | None, why: str, figures: Mapping[str, float]) -> Entry:
        before = self.live[0].release if self.live else None
        entry = Entry(what=what, target=self._site.target, before=before, to=release, why=why, figures=figures)
        return ledger.append(self._site.ledger, entry)


def _figures(answers: list[Answered], name: str) -> Figures:
    return Figures.of([answer for answer in answers if answer.release == name])


def _flat(whose: str, figures: Figures) -> dict[str, float]:
    return {
        f"{whose}/requests": figures.num_requests,
        f"{whose}/failure_rate": figures.failure_rate,
        f"{whose}/median_seconds": figures.median,
        f"{whose}/p95_seconds": figures.p95,
    }


class Share(BaseModel):
    """Release that gets a share of the requests, and its current health."""

    model_config = ConfigDict(frozen=True)

    percent: float
    release: Release | None
    """None if its container was removed by hand"""
    health: str


class Live(BaseModel):
    """Live releases of one target."""

    model_config = ConfigDict(frozen=True)

    shares: tuple[Share, ...]


def find_live(project: Project) -> dict[str, Live]:
    """Return the live releases of each target; empty if the gateway is not running."""
    gateway = project.running_gateway()
    routes = gateway.routes().targets if gateway else {}
    return {target: Live(shares=tuple(_shares(project, target, route))) for target, route in routes.items()}


def _shares(project: Project, target: str, route: Route) -> Iterator[Share]:
    found = {name_of(target, one.release): one for one in project.containers(target)}
    for name, percent in ((route.stable, 100 - route.percent), (route.canary, route.percent)):
        if name:
            one = found.get(name)
            health = (one.health or one.status) if one else "gone"
            yield Share(percent=percent, release=one.release if one else None, health=health)
