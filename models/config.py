import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from core.extensions import ExtensionPoint, short_name
from core.sections import OptionalPath, Section, Switch

IN_NO_KEY = "Values count by themselves, and a training by the code of its network."

NETWORKS = ExtensionPoint(
    "model.network",
    "convoy.networks",
    {
        "alexnet": "models.networks.alexnet:FAMILY",
        "lenet5": "models.networks.lenet:FAMILY",
        "efficientnet_lite0": "models.networks.efficientnet_lite:FAMILY",
        "efficientnet_lite1": "models.networks.efficientnet_lite:FAMILY",
        "efficientnet_lite2": "models.networks.efficientnet_lite:FAMILY",
    },
)
"""Networks of our own, each by the `Family` that builds it. Of the user's, also a function: num_classes, input_size."""
METRICS = ExtensionPoint("evaluation.metrics", "convoy.metrics", {"macro_f1": "models.judging.macro_f1:macro_f1"})
"""Figures of the test images, each by a function of `Predictions`."""
FIGURES = ("accuracy", "top5_accuracy", "loss", "worst_class_accuracy")
"""Those that every run has."""
RULES = ExtensionPoint(
    "gate.rules", "convoy.rules", {"no_class_gets_worse": "models.judging.class_regression:no_class_gets_worse"}
)
"""What may refuse a model: functions of the predictions of challenger and champion, both `Predictions`, or no champion.
Each gives one line that says why it refuses, or None."""
TORCHVISION = "models.networks.torchvision_networks"
OF_TORCHVISION = ("efficientnet_b0", "mobilenet_v3_large", "mobilenet_v3_small", "resnet18", "resnet50")
"""The likeliest of torchvision's, which are known without importing it; that takes 8 s."""


def _check_network(name: str) -> str:
    if name in OF_TORCHVISION or NETWORKS.has(name):
        return name
    import torchvision

    known = {*NETWORKS.ours, *torchvision.models.list_models(module=torchvision.models)}
    if name in known:
        return name
    close = difflib.get_close_matches(name, sorted(known), n=3) or NETWORKS.ours
    raise ValueError(f"no network of this name; near it are {', '.join(close)}; yours is my_file:function")


# YAML reads `preset: 2012` as a number.
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


class ModelConfig(Section):
    """Which network is trained. Fields left null keep the value of the preset."""

    network: Annotated[str, AfterValidator(_check_network)] = "alexnet"
    """alexnet, lenet5, efficientnet_lite0 to _lite2, a classifier of torchvision (resnet18), or my_file:function"""
    preset: Text | None = None
    """alexnet: bn (default), owt or 2012; lenet5: relu (default) or 1998; the others have none"""
    input_size: int | None = Field(None, ge=8, le=4096)
    """pixels on each side of what the network sees, cropped from data.size; null: data.size"""
    width: float = Field(1.0, gt=0, le=8)
    """multiplies the number of channels (alexnet)"""
    num_conv_layers: int | None = Field(None, ge=2, le=8)
    """number of convolution layers (alexnet)"""
    groups: Literal[1, 2] | None = None
    """2: two towers, as on the paper's two GPUs; 1: one (alexnet)"""
    activation: Literal["relu", "tanh"] | None = None
    """relu or tanh (alexnet, lenet5)"""
    normalization: Literal["none", "lrn", "batch"] | None = None
    """none, lrn (the paper's local response normalization) or batch (alexnet)"""
    pooling: Literal["overlapping", "plain", "average"] | None = None
    """overlapping (3x3 every 2) or plain (2x2 every 2) maxima (alexnet); plain or average (lenet5)"""
    dropout: float | None = Field(None, ge=0, lt=1)
    """share of the hidden units switched off while training (alexnet)"""
    weights: Literal["imagenet"] | OptionalPath = None
    """imagenet: the network's published weights (of alexnet for preset owt); or a state_dict file; null: none"""

    @property
    def is_added(self) -> bool:
        """Whether the network is one of the user's."""
        return self.network not in NETWORKS.ours and NETWORKS.has(self.network)


Precision = Literal["fp32", "bf16"]


class TrainingConfig(Section):
    """How the network is trained. Fields left null keep the value of the recipe."""

    recipe: Literal["auto", "probe", "finetune", "modern", "paper", "large_batch"] = "auto"
    """probe: logistic regression on the network's features; finetune: from there, all layers; modern: from nothing;
    paper: Krizhevsky 2012; large_batch: LARS; auto: probe, then finetune, with model.weights=imagenet, else modern"""
    max_epochs: int | None = Field(None, ge=1)
    """passes over the training images; null: 12, with finetune 5"""
    batch_size: int | None = Field(None, ge=2)
    """images a step; null: 64, with finetune 32"""
    learning_rate: float | None = Field(None, gt=0)
    """the highest rate of the schedule, for a batch of 128 images; scaled in proportion to batch_size"""
    momentum: float | None = Field(None, ge=0, lt=1)
    """share of the last step carried into the next"""
    weight_decay: float | None = Field(None, ge=0)
    """share of each weight taken off per unit of learning rate"""
    label_smoothing: float | None = Field(None, ge=0, lt=1)
    """share of the target spread over all classes"""
    warmup_epochs: float | None = Field(None, ge=0)
    """epochs over which the rate rises from 0"""
    patience: int | None = Field(None, ge=0)
    """epochs without a better validation accuracy after which the training ends; 0: never; null: 0, with finetune 3"""
    precision: Literal["auto"] | Precision = "auto"
    """fp32 or bf16 (with fp32 weights); auto: bf16 on GPUs that have it, fp32 on processors, which then agree"""
    channels_last: Switch = "auto"
    """whether the channels of a pixel lie together in memory; auto: as the network is computed fastest"""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """torch.compile, which takes a minute and on CPUs a C++ compiler; reduce-overhead: with CUDA graphs"""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU where there is one"""
    devices: int = Field(1, ge=1)
    """GPUs, or processes on CPUs, that share each batch"""
    num_nodes: int = Field(1, ge=1)
    """machines with so many devices each, started with torchrun"""
    seed: int = Field(0, ge=0)
    """every random draw follows from this, the epoch and the step"""
    class_balance: Literal["none", "weights", "sampling", "auto"] = "none"
    """for rare classes: weights in the loss, or sampling them more often; auto: sampling where sizes differ 10-fold"""
    resident: Switch = "auto"
    """keep all training images in the device's memory; auto: on a GPU where they take less than a quarter of it"""
    checkpoint_minutes: float = Field(5, gt=0)
    """minutes between two checkpoints; one is written at the end of every epoch and before a stop in any case"""
    max_hours: float | None = Field(None, gt=0)
    """hours after which the training ends with its best epoch, all attempts together; null: when the epochs are done"""
    log_every_n_steps: int = Field(50, ge=1)
    """steps between two points of the training curves"""

    @property
    def num_processes(self) -> int:
        """Of all machines."""
        return self.devices * self.num_nodes


class EvaluationConfig(Section):
    """What is measured on the test images."""

    metrics: tuple[Annotated[str, AfterValidator(METRICS.accept)], ...] = ()
    """figures of the run besides accuracy and loss: macro_f1, or my_file:function, which gives the figure `function`"""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of all figures: those that every run has, then those of `metrics`."""
        return (*FIGURES, *map(short_name, self.metrics))

    @model_validator(mode="after")
    def _has_no_figure_twice(self) -> "EvaluationConfig":
        if twice := [name for name, number in Counter(self.figures).items() if number > 1]:
            raise ValueError(f"evaluation.metrics: there are two figures named {twice[0]}: rename one of the functions")
        return self


class GateConfig(Section):
    """What a model must reach on the test images before it becomes the champion."""

    better_than_guessing: bool = True
    """surely (lower end of the 95 % interval) more test images right than by always guessing the largest class"""
    min_accuracy: float = Field(0.0, ge=0, le=1)
    """share of the test images that must be classified correctly; set it to what your users need"""
    min_class_accuracy: float | None = Field(0.0, ge=0, le=1)
    """the same for the worst class; 0: at least one image of each class; null: no floor"""
    min_class_images: int = Field(10, ge=1)
    """classes with fewer test images are too small to be judged by min_class_accuracy"""
    max_slice_drop: float | None = Field(None, ge=0, le=1)
    """accuracy by which a slice of the test images that is surely worse than the rest may be worse; null: only told"""
    min_metrics: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """least value of any figure, such as {top5_accuracy: 0.95} or {macro_f1: 0.8} with evaluation.metrics=[macro_f1]"""
    max_metrics: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """largest value of any figure, such as {loss: 0.5}"""
    rules: tuple[Annotated[str, AfterValidator(RULES.accept)], ...] = ()
    """further rules that may refuse: no_class_gets_worse (surely worse than the champion's), or my_file:function"""
    max_regression: float = Field(0.02, ge=0, le=1)
    """test accuracy that may be lost against the champion: holds for the lower end of the difference's 95 % interval"""
    max_calibration_error: float = Field(0.1, ge=0, le=1)
    """largest expected calibration error on the test images, or what chance makes of so few of them"""
    min_precision: float = Field(0.95, gt=0, lt=1)
    """share of the certain answers that are right: chooses, on validation images, below what an answer is uncertain"""
    when_unsure: Literal["measured", "wait"] = "measured"
    """too few test images to tell: measured: wait if measured lower than the champion, else promote; wait: always"""
    approval: Literal["none", "required"] = "none"
    """required: a model that has passed waits for `convoy approve`; none: it becomes the champion"""
    allow_new_source: bool = False
    """train on another data source than the champion's; false: stop before anything is prepared"""
    max_parity_error: float = Field(1e-3, gt=0)
    """largest difference of a probability between the exported model and the trained one"""
    max_int8_accuracy_drop: float = Field(0.01, ge=0, le=1)
    """how much accuracy int8 may lose against fp32, on validation and on test images; else fp32 is served"""


class RegistryConfig(Section):
    """Where runs and models are kept."""

    experiment: str = Field("convoy", min_length=1)
    """MLflow experiment that the runs belong to"""
    model_name: str = Field("classifier", min_length=1, pattern=r"^[^/:.%\"']+$")
    """MLflow registered model that versions are added to"""
