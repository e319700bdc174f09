"""What an endpoint will run on: the target that the configuration names, and the runtime that its model has."""

from importlib.util import find_spec

from core.errors import UserError
from serving.config import TARGET, ServingConfig
from serving.targets import Runtime, Target


def load_target(config: ServingConfig) -> Target:
    """Give the configured target.

    Raises:
        UserError: it is not there, is no `Target`, has the name of one of ours, or computes by code that is not
            installed.

    """
    found = TARGET.load(config.target)
    TARGET.require(config.target, found, Target)
    assert isinstance(found, Target)
    if config.target not in TARGET.ours:
        if config.target_name in TARGET.ours:
            raise UserError(f"serving.target is {config.target}, and {config.target_name} is one of ours: rename yours")
        for runtime in found.runtimes:
            _require_installed(config.target, runtime)
    return found


def _require_installed(name: str, runtime: Runtime) -> None:
    """A Bento holds no code of a project, so what computes its models comes with the tool or with a package."""
    package = runtime.predictor.partition(":")[0].partition(".")[0]
    if find_spec(package) is None:
        raise UserError(
            f"serving.target is {name}, whose runtime {runtime.predictor} is in no installed package: install it here, "
            "and name its package in the target's packages"
        )
