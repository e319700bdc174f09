"""A network that a user writes, in a file of the project."""

import pytest
import torch
from conftest import tiny_job

from core.errors import UserError
from models.config import ModelConfig
from models.exported.export import require_exportable
from models.networks.registry import build_network, start_from_weights
from models.networks.weights import IMAGENET
from models.training.train import build_classifier

NET = """
from torch import nn

CHANNELS = 4

class Net(nn.Sequential):
    def __init__(self, num_classes, input_size):
        super().__init__(nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(CHANNELS, num_classes))

def build(num_classes, input_size):
    return Net(num_classes, input_size)
"""
FAMILY = """
from models.networks.family import Family
from models.networks.weights import IMAGENET
from models.training.train import build_classifier
from .my_net import Net

FAMILY = Family(
    lambda name, num_classes, input_size, preset, options: Net(num_classes, input_size),
    presets=("small", "large"),
    normalization=IMAGENET,
)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(NET)
    return tmp_path


@pytest.mark.parametrize("name", ["my_net:build", "my_net:Net"])
def test_a_function_or_a_class_builds_it(project, name):
    network = build_network(ModelConfig(network=name), 3, 20)
    assert network.training
    assert network(torch.zeros(5, 3, 20, 20)).shape == (5, 3)


def test_a_family_has_presets_and_weights(project):
    (project / "my_family.py").write_text(FAMILY)
    config = ModelConfig(network="my_family:FAMILY", preset="large", weights=project / "weights.pt")
    torch.save(build_network(config, 3, 20).state_dict(), project / "weights.pt")
    assert start_from_weights(build_network(config, 3, 20), config) == IMAGENET
    with pytest.raises(
        UserError, match=r"^model\.preset is huge, which my_family:FAMILY does not have: make it one of"
    ):
        build_network(config.model_copy(update={"preset": "huge"}), 3, 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def build(num_classes, input_size): return 3", "which gave an int: expected torch.nn.modules.module.Module"),
        ("def build(num_classes): ...", "which cannot be called as build(num_classes, input_size): too many"),
        ("def build(num_classes, input_size): return {}['x']", "my_net.py:1: KeyError: 'x' (model.network is my_net:"),
        (
            NET.replace("nn.Linear(CHANNELS, num_classes)", "nn.Linear(CHANNELS, 1000)"),
            "which gives shape (2, 1000) for 2 images of 20 px: expected logits [2, 3], one for each class",
        ),
        (
            NET.replace("nn.Linear(CHANNELS, ", "nn.Linear(7, "),
            "mat2 shapes cannot be multiplied (2x4 and 7x3)",
        ),
        (NET.replace("nn.Conv2d", "nn.Conv2D"), "my_net.py:8: AttributeError: module 'torch.nn' has no"),
    ],
)
def test_what_is_no_network_is_told_in_one_line(project, text, words):
    (project / "my_net.py").write_text(text)
    with pytest.raises(UserError) as caught:
        build_network(ModelConfig(network="my_net:build"), 3, 20)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_served_is_told_before_it_is_trained(project, prepared):
    job = tiny_job(prepared, "my_net:build")
    classifier = build_classifier(job)
    require_exportable(classifier, job.input_size, job.model.network)
    assert classifier.training, "it is left as it was"
    with_numpy = """
class Net(nn.Linear):
    def forward(self, images):
        return super().forward(torch.from_numpy(images.flatten(1).numpy()))

def build(num_classes, input_size):
    return Net(3 * input_size**2, num_classes)
"""
    (project / "my_net.py").write_text(f"import torch\nfrom torch import nn\n{with_numpy}")
    words = r"^model\.network is my_net:build, which torch cannot export as a program in bf16 \(\w+: .*\): an endpoint"
    with pytest.raises(UserError, match=words):
        require_exportable(build_classifier(job), job.input_size, job.model.network)


def test_options_of_other_networks_are_refused(project):
    with pytest.raises(UserError, match=r"^model\.width is 0\.5, which is no option of my_net:build: leave it 1\.0$"):
        build_network(ModelConfig(network="my_net:build", width=0.5), 3, 20)


def test_a_changed_constant_trains_anew_and_a_changed_comment_does_not(project, prepared):
    job = tiny_job(prepared, "my_net:build")
    (project / "my_net.py").write_text(f"# The smallest of all.\n{NET}")
    assert tiny_job(prepared, "my_net:build").key == job.key
    (project / "my_net.py").write_text(NET.replace("CHANNELS = 4", "CHANNELS = 5"))
    changed = tiny_job(prepared, "my_net:build")
    assert changed.key != job.key
    assert changed.changes_since(job.data_version, job.params, job.code) == ["the code has changed"]
    assert tiny_job(prepared).key == tiny_job(prepared, "lenet5").key
