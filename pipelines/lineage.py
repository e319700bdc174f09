"""Lineage from a git commit to a live endpoint, and back.

commit -> data version -> run -> model version -> Bento -> image -> live
"""

import json
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from core.errors import UserError, one_line
from pipelines.config import Config
from pipelines.nearest import nearest
from pipelines.settings import Settings
from pipelines.workspace import LEDGER, ROOT, open_registry, open_tracking
from serving.packaging.bento import Bento, list_bentos
from serving.packaging.image import image_tag
from serving.rollout.docker import docker
from serving.rollout.ledger import MOVES, Entry, Release, read

if TYPE_CHECKING:
    from models.tracking.registry import ModelVersion, Registry
    from models.tracking.runs import TrainedRun

Kind = Literal["commit", "data", "run", "version", "bento", "image", "live"]
MIN_LETTERS = 6
"""Minimum length of an abbreviated hash or id."""
UNKNOWN = "unknown"
ANSWER_SECONDS = 10


class Node(BaseModel):
    """Item of the lineage, and the items made from it."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    id: str
    facts: dict[str, str] = {}
    asked: bool = False
    """whether the user asked for this item"""
    children: tuple["Node", ...] = ()

    def is_named(self, name: str) -> bool:
        """Whether `name` is this item's id, the beginning of its id, or another name of the item."""
        names = (self.id, *(self.facts.get(key, "") for key in ("names", "image_id", "model")))
        words = {word for one in names for word in (one, *one.split(", ")) if word}
        plain = name.removeprefix("sha256:")
        is_start = len(plain) >= MIN_LETTERS
        return name in words or (is_start and any(word.removeprefix("sha256:").startswith(plain) for word in words))


def lineage(config: Config, name: str) -> tuple[Node, ...]:
    """Return all items that lead to an item, and all items made from it, from the commits down.

    `name` is a git commit, a data version, a run, a model version or alias, a Bento, an image, a container, a target
    such as `cpu`, or the address of an endpoint.

    Raises:
        UserError: there is no such item. The message gives similar names.

    """
    tree = _tree(config)
    wanted, kind = _resolve(name)
    found = tuple(node for one in tree if (node := _keep(one, wanted, kind)))
    if found:
        return found
    what = f"{name} is of {kind} {wanted}, which is" if kind else f"{name!r} is"
    raise UserError(f"{what} not known here{nearest(name, sorted(set(_names(tree))))}")


def _keep(node: Node, name: str, kind: Kind | None) -> Node | None:
    """Keep the wanted items with everything below them, and the items that lead to them."""
    if kind in (None, node.kind) and node.is_named(name):
        return node.model_copy(update={"asked": True})
    children = tuple(kept for child in node.children if (kept := _keep(child, name, kind)))
    return node.model_copy(update={"children": children}) if children else None


def _names(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        yield node.id
        yield from (word for word in node.facts.get("names", "").split(", ") if word)
        yield from _names(node.children)


def _resolve(name: str) -> tuple[str, Kind | None]:
    """Ask an endpoint for its run, and the Docker engine for a container's image. Other names stay unchanged."""
    if name.startswith(("http://", "https://")):
        return _run_of_endpoint(name), "run"
    try:
        return docker("container", "inspect", "--format", "{{.Image}}", name, timeout=ANSWER_SECONDS), "image"
    except UserError:
        return name, None


def _run_of_endpoint(address: str) -> str:
    token = Settings().convoy_token
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
    request = urllib.request.Request(f"{address.rstrip('/')}/model", headers=headers)  # noqa: S310 - http, see above
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            return str(json.load(answer)["run_id"])
    except urllib.error.HTTPError as error:
        hint = ": set CONVOY_TOKEN to a token of it" if error.code in (401, 403) else ""
        raise UserError(f"{address} answers {error.code} to /model{hint}", exit_code=1) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{address} does not answer as an endpoint of Convoy: {one_line(error)}", exit_code=1) from None


def _tree(config: Config) -> tuple[Node, ...]:
    """Combine the records of MLflow, the Bentos and the ledger."""
    entries, registry = read(LEDGER), open_registry(config)
    runs = {run.run_id: run for run in open_tracking(config).all_trained()}
    bentos, images = defaultdict[str, list[Bento]](list), _images(entries)
    for bento in list_bentos(Settings().bento_store(ROOT)):
        bentos[bento.run_id].append(bento)
    places: dict[str, dict[str, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for run_id in dict.fromkeys([*runs, *bentos, *images]):
        run, its_images = runs.get(run_id), images.get(run_id, {})
        node = _run(run_id, run, _versions(registry, run_id, bentos[run_id], its_images, entries))
        commit, data_version = _origin(run, bentos[run_id], its_images)
        places[commit][data_version].append(node)
    return tuple(
        Node(
            kind="commit",
            id=commit,
            children=tuple(Node(kind="data", id=data, children=tuple(nodes)) for data, nodes in by_data.items()),
        )
        for commit, by_data in places.items()
    )


def _origin(run: "TrainedRun | None", bentos: list[Bento], images: dict[str, Release]) -> tuple[str, str]:
    """Return commit and data version of a run. If MLflow does not have the run, ask its Bentos and images."""
    if run:
        return run.git_commit or UNKNOWN, run.data_version or UNKNOWN
    data = [*(bento.data_version for bento in bentos), *(release.data_version for release in images.values())]
    commits = [bento.git_commit for bento in bentos if bento.git_commit]
    return next(iter(commits), UNKNOWN), next(filter(None, data), UNKNOWN)


def _run(run_id: str, run: "TrainedRun | None", children: Iterable[Node]) -> Node:
    if run is None:
        return Node(kind="run", id=run_id, facts={"note": "MLflow does not have it"}, children=tuple(children))
    facts = {"name": run.tags.get("mlflow.runName", "")}
    if "test/accuracy" in run.metrics:
        facts["test accuracy"] = f"{run.metrics['test/accuracy']:.4f}"
    return Node(kind="run", id=run_id, facts=facts, children=tuple(children))


def _versions(
    registry: "Registry", run_id: str, bentos: list[Bento], images: dict[str, Release], entries: list[Entry]
) -> Iterator[Node]:
    version = registry.by_run(run_id)
    numbers = [*(bento.model_version for bento in bentos), *(release.model_version for release in images.values())]
    known = version.version if version else next(iter(numbers), None)
    if known is None:
        return
    packed = {image_tag(bento): bento for bento in bentos}
    children = [_bento(bento, images.pop(tag, None), entries) for tag, bento in packed.items()]
    # Deployed images whose Bento is not in the store any more.
    children += [_image(release, entries) for release in images.values()]
    yield Node(kind="version", id=f"v{known}", facts=_facts(version, known, entries), children=tuple(children))


def _facts(version: "ModelVersion | None", number: str, entries: list[Entry]) -> dict[str, str]:
    facts = {"names": ", ".join([number, *(version.aliases if version else ())])}
    if version:
        facts["model"] = str(version)
    promoted = [one for one in entries if one.target is None and one.what == "promote" and one.to]
    for entry in promoted:
        if entry.to and entry.to.model_version == number:
            facts["promoted"] = f"{entry.when:%Y-%m-%d %H:%M:%SZ} by {entry.by}: {entry.why}"
    return facts


def _bento(bento: Bento, release: Release | None, entries: list[Entry]) -> Node:
    facts = {"target": bento.target, "packed": f"{bento.created:%Y-%m-%d %H:%M:%SZ}"}
    facts["names"] = bento.tag.partition(":")[2]
    release = release or _built(bento)
    return Node(kind="bento", id=bento.tag, facts=facts, children=(_image(release, entries),) if release else ())


def _built(bento: Bento) -> Release | None:
    """Return the image of a Bento that has not been deployed, or None if there is no image or no engine answers."""
    tag = image_tag(bento)
    try:
        image_id = docker("image", "ls", "--quiet", "--no-trunc", tag, timeout=ANSWER_SECONDS)
    except UserError:
        return None
    return Release(image=tag, image_id=image_id) if image_id else None


def _images(entries: list[Entry]) -> dict[str, dict[str, Release]]:
    """Return the images in the ledger, by run and tag."""
    found: dict[str, dict[str, Release]] = defaultdict(dict)
    for entry in entries:
        if entry.to and entry.to.image and entry.to.run_id:
            found[entry.to.run_id][entry.to.image] = entry.to
    return found


def _image(release: Release, entries: list[Entry]) -> Node:
    spans = tuple(_spans(release, entries))
    return Node(kind="image", id=release.image, facts={"image_id": release.image_id}, children=spans)


def _spans(release: Release, entries: list[Entry]) -> Iterator[Node]:
    """Yield the periods in which an image had all requests of a target."""
    targets = dict.fromkeys(one.target for one in entries if one.target)
    for target in targets:
        moves: list[Entry | None] = [one for one in entries if one.target == target and one.what in MOVES and one.to]
        for entry, following in pairwise([*moves, None]):
            if entry and entry.to and entry.to.image_id == release.image_id:
                facts: dict[str, Any] = {"since": f"{entry.when:%Y-%m-%d %H:%M:%SZ}", "by": entry.by, "why": entry.why}
                if following:
                    facts["until"] = f"{following.when:%Y-%m-%d %H:%M:%SZ}"
                yield Node(kind="live", id=str(target), facts=facts)
