"""Output of `convoy status`, and of `convoy run` at its end."""

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import whole_file
from data.manifest import read_data_manifest
from pipelines.config import Config
from pipelines.known import database_of, database_state, known_models
from pipelines.settings import OUTPUTS, Settings
from pipelines.workspace import LEDGER, PREPARED, ROOT, open_registry, open_tracking
from serving.packaging.bento import Bento, list_bentos
from serving.packaging.verify import verified_answer
from serving.rollout.ledger import read

CHAMPION_NOTE = OUTPUTS / "champion.json"
"""Cache of the champion in MLflow, with the state of MLflow's database."""


def collect_status(config: Config) -> dict[str, Any]:
    """Collect the status. Items that do not exist yet are None or empty."""
    bentos = [
        {"tag": bento.tag, "target": bento.target, "model": bento.model_name, "version": bento.model_version}
        for bento in list_bentos(Settings().bento_store(ROOT))
    ]
    return {"data": _data_status(), "champion": _champion_status(config), "bentos": bentos, "live": _live_status()}


def _data_status() -> dict[str, Any] | None:
    from data.versioning import data_version

    try:
        manifest = read_data_manifest(PREPARED)
    except UserError:
        return None
    return {"version": data_version(ROOT), "num_images": manifest.num_images, "classes": list(manifest.classes)}


def _champion_status(config: Config) -> dict[str, Any] | None:
    """Return the champion. MLflow, whose import takes seconds, is asked only if its database has changed."""
    database = database_of()
    if database is None:
        return _ask_for_champion(config)
    if not database.is_file():
        return None
    state = database_state(database, config)
    if CHAMPION_NOTE.is_file():
        note = json.loads(CHAMPION_NOTE.read_text(encoding="utf-8"))
        if note["state"] == state:
            known: dict[str, Any] | None = note["champion"]
            return known
    champion = _ask_for_champion(config)
    # If the database has changed meanwhile, the answer may be outdated.
    if database_state(database, config) == state:
        with whole_file(CHAMPION_NOTE) as temporary:
            temporary.write_text(json.dumps({"state": state, "champion": champion}), encoding="utf-8")
    return champion


def _ask_for_champion(config: Config) -> dict[str, Any] | None:
    from models.tracking.registry import CHAMPION

    champion = open_registry(config).by_alias(CHAMPION)
    if champion is None:
        return None
    metrics = open_tracking(config).get(champion.run_id).metrics
    return {
        "name": champion.name,
        "version": champion.version,
        "run_id": champion.run_id,
        "data_version": champion.data_version,
        "git_commit": champion.git_commit,
        "metrics": {name: value for name, value in metrics.items() if name.startswith(("test/", "val/"))},
    }


def _live_status() -> dict[str, Any]:
    """Ask Docker for the live releases, if the ledger has a deployment."""
    if not any(entry.target for entry in read(LEDGER)):
        return {}
    from serving.rollout.containers import Project
    from serving.rollout.deploy import find_live

    try:
        return {target: live.model_dump(mode="json") for target, live in find_live(Project(ROOT)).items()}
    except UserError as error:
        logging.getLogger("convoy").warning("live: %s", error)
        return {}


def print_status(found: dict[str, Any]) -> None:
    """Print a status as text."""
    data, champion = found["data"], found["champion"]
    if data:
        # A stage that was killed at its very end leaves files without a version.
        version = data["version"][:8] if data["version"] else "no version yet"
        print(f"data      {version}, {data['num_images']:,} images in {len(data['classes'])} classes")
    else:
        print("data      none yet: `convoy data prepare`")
    if champion:
        accuracy = champion["metrics"].get("test/accuracy", float("nan"))
        print(
            f"champion  {champion['name']} v{champion['version']}, test accuracy {accuracy:.4f}, "
            f"run {champion['run_id'][:8]}, data {champion['data_version'][:8]}"
        )
    else:
        print("champion  none yet: `convoy run`")
    for bento in found["bentos"]:
        print(f"bento     {bento['tag']} ({bento['target']}): {bento['model']} v{bento['version']}")
    for target, live in found["live"].items():
        for share in live["shares"]:
            release = share["release"]
            model = f"{release['model_name']} v{release['model_version']}, {release['image']}" if release else "gone"
            print(f"live      {target}: {share['percent']:g} % {model}, {share['health']}")


def print_run(bento: Bento, config: Config) -> None:
    """Print the result of a run, and the next commands."""
    answer = verified_answer(bento) or {}
    best = answer["predictions"][0]
    # Without an activated environment, the command needs its path.
    convoy = "convoy" if shutil.which("convoy") else sys.argv[0]
    uri = Settings().tracking_uri(Path(ROOT))
    # Fill the caches of `convoy status` and `convoy explain` while MLflow is loaded.
    _champion_status(config)
    known_models(config)
    print(
        f"\n{bento.model_name} v{bento.model_version} is the champion, packed as {bento.tag}.\n"
        f"Asked about {answer['image']!r}, its endpoint answered '{best['label']}' ({best['probability']:.3f}).\n\n"
        f"  {convoy} status       data, champion, Bentos\n"
        f"  {convoy} serve        the endpoint, on http://{config.serving.host}:{config.serving.port}\n"
        f"  {convoy} up           MLflow's and Prefect's pages, with the flows ready to be triggered\n"
        f"  {convoy} data report  what the data holds, and what was left out and why\n"
        f"  {' ' * len(convoy)} (runs and models are in {uri})"
    )
