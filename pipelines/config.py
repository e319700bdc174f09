"""Reads params.yaml and overrides into one frozen Config. No other module reads them."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, model_validator
from pydantic_core import ErrorDetails

from core.errors import UserError
from core.extensions import ExtensionPoint
from core.sections import Section
from data.config import SOURCES, AugmentationConfig, DataConfig
from models.config import (
    METRICS,
    NETWORKS,
    RULES,
    EvaluationConfig,
    GateConfig,
    ModelConfig,
    RegistryConfig,
    TrainingConfig,
)
from models.training.recipes import FINETUNE, PROBE, stages
from pipelines.operations.config import AutomationConfig, RetentionConfig
from serving.config import TARGET, ServingConfig
from serving.rollout.canary import RolloutConfig
from serving.rollout.gateway import GatewayConfig

PARAMS = "params.yaml"


class Config(Section):
    """Every tunable value of Convoy, in one section for each room or step."""

    data: DataConfig = DataConfig()
    """source of the labelled images, and their conversion to arrays"""
    augmentation: AugmentationConfig = AugmentationConfig()
    """augmentation of the training images"""
    model: ModelConfig = ModelConfig()
    """the network"""
    training: TrainingConfig = TrainingConfig()
    """training of the network"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """measurements on the test images"""
    gate: GateConfig = GateConfig()
    """requirements for a new champion"""
    registry: RegistryConfig = RegistryConfig()
    """storage of runs and models"""
    serving: ServingConfig = ServingConfig()
    """packaging and serving of the champion"""
    rollout: RolloutConfig = RolloutConfig()
    """how a new version replaces the live version"""
    gateway: GatewayConfig = GatewayConfig()
    """limits of the gateway for each client; the next `convoy deploy` applies a change"""
    automation: AutomationConfig = AutomationConfig()
    """flows that `convoy up` or a worker starts by itself"""
    retention: RetentionConfig = RetentionConfig()
    """what `convoy clean` removes"""

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.model.input_size and self.model.input_size > self.data.size:
            raise ValueError(
                f"model.input_size={self.model.input_size} is larger than data.size={self.data.size}: "
                "a network sees at most what is stored"
            )
        if self.automation.watch and self.data.path is None:
            raise ValueError("automation.watch looks at data.path, which is null: set it to the folder of the images")
        if self.data.val_fraction + self.data.test_fraction > 0.8:
            raise ValueError(
                f"data.val_fraction={self.data.val_fraction} and data.test_fraction={self.data.test_fraction} together "
                "leave less than a fifth to train on"
            )
        if self.model.weights is None and self.training.recipe in (PROBE, FINETUNE):
            raise ValueError(
                f"training.recipe={self.training.recipe} starts from trained weights, and model.weights is null: "
                "set model.network=efficientnet_lite0 and model.weights=imagenet"
            )
        for limits, names in (("min_metrics", self.gate.min_metrics), ("max_metrics", self.gate.max_metrics)):
            if unknown := sorted(names.keys() - {*self.evaluation.figures}):
                raise ValueError(
                    f"gate.{limits} has {unknown[0]}, which nothing measures: there are "
                    f"{', '.join(self.evaluation.figures)}, and what evaluation.metrics adds"
                )
        return self

    @property
    def stages(self) -> "tuple[Config, ...]":
        """The configuration of each training, one after another, that `training.recipe` stands for."""
        return tuple(
            self.model_copy(update={"training": self.training.model_copy(update={"recipe": recipe})})
            for recipe in stages(self.training, self.model)
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read params.yaml and apply overrides such as `training.max_epochs=3`.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown, or a value is invalid. The message names for every
            fault the file, the path, the value and the expected value. Or a file of the project does not define
            what a parameter names.

    """
    config = _validate(_read(path), path, overrides)
    for point, name in _extensions(config):
        point.check(name, path.parent)
    return config


def _extensions(config: Config) -> Iterator[tuple[ExtensionPoint, str]]:
    """Give what may be the user's own, and the name of each."""
    yield SOURCES, config.data.source
    yield NETWORKS, config.model.network
    yield from ((METRICS, name) for name in config.evaluation.metrics)
    yield from ((RULES, name) for name in config.gate.rules)
    yield TARGET, config.serving.target


def default_config(overrides: Sequence[str] = ()) -> Config:
    """Apply overrides to the defaults of the tool.

    Raises:
        UserError: an override is invalid.

    """
    return _validate({}, Path(PARAMS), overrides)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides to a configuration.

    Raises:
        UserError: an override is not what is expected.

    """
    return _validate(config.model_dump(mode="json"), Path(PARAMS), overrides)


def _validate(content: dict[str, Any], path: Path, overrides: Sequence[str]) -> Config:
    overridden = set()
    for override in overrides:
        key, equals, value = override.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys):
            raise UserError(f"--set {override}: expected PATH=VALUE, such as training.max_epochs=3")
        _set(content, keys, _parse(override, value), override)
        overridden.add(keys)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(fault, path, overridden) for fault in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except FileNotFoundError:
        raise UserError(
            f"there is no {path.name} in {path.resolve().parent}: go to a project's folder, name it with "
            "`convoy --project DIR`, or make one with `convoy init DIR`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{where} is not YAML: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as `data:`, found {content!r}")
    # YAML reads null if every line of a section is commented out.
    return {name: {} if section is None else section for name, section in content.items()}


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys, and with dates as text: no parameter is a date, but a date may name a folder."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as yaml declares it
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key. YAML would silently drop the first one."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(override: str, value: str) -> Any:
    try:
        return yaml.load(value, _Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        raise UserError(
            f"--set {override}: {value!r} is not a value; put quotes around text with special signs"
        ) from None


def _set(content: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    *parents, last = keys
    for key in parents:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UserError(f"--set {override}: {key} is a value, not a section")
    content[last] = value


def _explain(fault: ErrorDetails, path: Path, overridden: set[tuple[str, ...]]) -> str:
    # Section and parameter. pydantic adds its own types after them.
    location = tuple(str(part) for part in fault["loc"][:2])
    # Either may be the longer one: the location of an unknown section has only one part.
    is_overridden = any(location[: len(keys)] == keys[: len(location)] for keys in overridden)
    where = "--set" if is_overridden else str(path)
    name = ".".join(location)
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) > len(location):
        return f"{where}: {name}: unknown key {fault['loc'][-1]}"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key {name}{_suggestion(location)}"
    message = fault["msg"].removeprefix("Value error, ")
    if not location:
        return f"{path}{' with --set' if overridden else ''}: {message}"
    return f"{where}: {name} = {fault['input']!r}: {_expectation(fault, location, message)}"


def _expectation(fault: ErrorDetails, location: tuple[str, ...], message: str) -> str:
    if fault["type"] == "model_type":
        return f"expected a section with {', '.join(Config.model_fields[location[0]].annotation.model_fields)}"  # type: ignore[union-attr]
    if fault["type"] in ("string_type", "path_type") and isinstance(fault["input"], int | float):
        return f"expected text: put quotes around it, --set '{'.'.join(location)}=\"{fault['input']}\"'"
    return f"{message[0].lower()}{message[1:]}"


def _suggestion(location: tuple[str, ...]) -> str:
    known: Any = Config
    for part in location[:-1]:
        known = known.model_fields[part].annotation
    names = list(known.model_fields)
    elsewhere = [path for path, _, _ in describe() if path.endswith(f".{location[-1]}")]
    close = difflib.get_close_matches(location[-1], names, n=1) or elsewhere
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"


def describe() -> Iterator[tuple[str, str, str]]:
    """Yield path, default as YAML, and one line of documentation of every parameter."""
    for section, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        for name, parameter in field.annotation.model_fields.items():
            default = _to_yaml(parameter.get_default(call_default_factory=True))
            yield f"{section}.{name}", default, " ".join((parameter.description or "").split())


ALL = "# Every tunable value of Convoy. `convoy ... --set training.max_epochs=3` overrides one for one command."
CHANGED = "# What differs from Convoy's defaults. `convoy params` prints every parameter with its meaning."


def render(config: Config, *, only_changed: bool = False) -> str:
    """Write a configuration as params.yaml with documentation: every value, or only values that are not the default."""
    values, defaults = config.model_dump(mode="json"), Config().model_dump(mode="json")
    lines = [CHANGED if only_changed else ALL]
    section = ""
    for path, _, documentation in describe():
        head, name = path.split(".")
        if only_changed and values[head][name] == defaults[head][name]:
            continue
        if head != section:
            section = head
            lines += ["", f"# {Config.model_fields[head].description}", f"{head}:"]
        lines += [f"  # {documentation}", f"  {name}: {_to_yaml(values[head][name])}"]
    return "\n".join(lines) + "\n"


def _to_yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")
