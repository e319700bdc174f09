"""The commands that change the champion and the live release, print these changes, and make a token for endpoints."""

import json
from typing import Annotated

import typer

from core.errors import UserError
from pipelines.commands.options import AsJson, Overrides, Target, start

Why = Annotated[str, typer.Option(help="The reason, for the ledger.")]


def promote(
    version: Annotated[str, typer.Argument(help="Version of the model, such as 3.")],
    why: Annotated[str, typer.Option(help="The reason, for the ledger.")],
    overrides: Overrides = None,
) -> None:
    """Make a version the champion, whatever the gate says."""
    config = start(overrides, says="promote: asks MLflow for the version")
    from pipelines.promotions import promote_version

    print(promote_version(config, version, why))


def approve(
    version: Annotated[str, typer.Argument(help="Version of the model, such as 3.")],
    why: Annotated[str, typer.Option(help="The reason, for the ledger.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse it instead: the champion stays.")] = False,
    overrides: Overrides = None,
) -> None:
    """Decide about a version that waits for a person after the gate."""
    config = start(overrides, says="approve: asks MLflow for the version")
    from pipelines.promotions import approve_version, refuse_version

    print((refuse_version if refuse else approve_version)(config, version, why))


def deploy(
    target: Target = None,
    version: Annotated[int | None, typer.Option(help="Version of the model; else the champion.")] = None,
    canary: Annotated[
        float | None,
        typer.Option(min=1, max=99, metavar="PERCENT", help="Try it on this share of the requests first."),
    ] = None,
    why: Why = "",
    overrides: Overrides = None,
) -> None:
    """Replace the live model behind the gateway, without a failed request."""
    config = start(overrides, target, says="deploy: asks MLflow for the model")
    from pipelines.settings import use_stack
    from pipelines.workspace import ROOT, open_site

    open_site(config)
    use_stack(ROOT)
    from pipelines.session import run_flow

    asked = str(version) if version is not None else None
    run_flow("deploy_model", config, asked, canary, why)
    _tell_where(config.serving.target_name)


def rollback(target: Target = None, why: Why = "", overrides: Overrides = None) -> None:
    """Bring back the previous release, without a failed request."""
    config = start(overrides, target, says="rollback: asks Docker for what is live")
    from pipelines.releases import roll_back
    from pipelines.settings import use_stack
    from pipelines.workspace import ROOT

    use_stack(ROOT)
    roll_back(config, why)
    _tell_where(config.serving.target_name)


def ledger(
    target: Target = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Look instead whether a line was changed or is missing.")
    ] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Print every change of the champion and of the live release: when, what, from, to, why, by whom."""
    if verify and target:
        raise UserError("--verify is of the whole ledger: leave --target out")
    start(overrides)
    from core.extensions import short_name
    from pipelines.workspace import LEDGER
    from serving.rollout.ledger import read

    if verify:
        _verify_ledger(as_json=as_json)
        return
    entries = read(LEDGER, short_name(target).lower() if target else None)
    if as_json:
        print(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=1, ensure_ascii=False))
        return
    if not entries:
        on_it = f" for {target}" if target else ""
        print(f"the ledger is empty: nothing has been promoted or deployed{on_it} yet")
    for entry in entries:
        print(entry)


def _verify_ledger(*, as_json: bool) -> None:
    from pipelines.workspace import LEDGER
    from serving.rollout import chain

    found = chain.verify(LEDGER)
    if as_json:
        print(found.model_dump_json(indent=1))
    if found.faults:
        raise UserError(f"the ledger was altered: {'; '.join(found.faults)}", exit_code=1)
    if not as_json:
        older = f"; {found.num_unchained:,} of them from before lines were chained" if found.num_unchained else ""
        print(f"the ledger is whole: {found.head.num_lines:,} lines, the last one {found.head.sha256 or '-'}{older}")


def _tell_where(target: str) -> None:
    from pipelines.settings import Stack

    stack = Stack()
    header = "" if stack.convoy_allow_anonymous else "-H 'Authorization: Bearer TOKEN' "
    print(f"{target} is live on {stack.address(stack.gateway_port)}/{target}/")
    print(f"  curl {header}-F image=@some.png {stack.address(stack.gateway_port)}/{target}/classify")


def token(
    name: Annotated[str, typer.Argument(help="Whose it is; a note for the tokens file.")] = "",
) -> None:
    """Make a token for endpoints: the client gets the first line, a tokens file the second."""
    from serving.endpoint.auth import TOKENS_FILE, new_token

    secret, line = new_token(name)
    print(f"token: {secret}")
    print(f"line for the file that {TOKENS_FILE} names: {line}")
