import pytest
import torch
from conftest import tiny_job

from models.config import ModelConfig, TrainingConfig
from models.training.execution import settle
from models.training.recipes import resolve_training, stages


def test_processors_compute_in_fp32_whatever_they_can_do(prepared, monkeypatch):
    """Two processors of two kinds then train the same network."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    settled = settle(tiny_job(prepared, precision="auto", channels_last="auto"))
    assert (settled.training.precision, settled.training.channels_last) == ("fp32", False)
    assert settle(tiny_job(prepared, "alexnet", channels_last="auto")).training.channels_last is True


def test_what_is_configured_stays(prepared):
    job = tiny_job(prepared, precision="bf16", channels_last=True)
    assert settle(job) == job


@pytest.mark.parametrize(
    ("recipe", "weights", "expected"),
    [
        ("auto", None, ("modern",)),
        ("auto", "imagenet", ("probe", "finetune")),
        ("auto", "some.pth", ("modern",)),
        ("paper", "imagenet", ("paper",)),
    ],
)
def test_what_auto_stands_for(recipe, weights, expected):
    assert stages(TrainingConfig(recipe=recipe), ModelConfig(weights=weights)) == expected


def test_a_job_knows_the_values_of_its_recipe(prepared):
    job = tiny_job(prepared, max_epochs=None, batch_size=None, recipe="paper")
    assert job.params["training.learning_rate"] == "0.01"
    assert (job.recipe.max_epochs, job.recipe.batch_size) == (12, 64)


def test_what_a_probe_has_no_use_for_does_not_train_it_anew(prepared):
    model = ModelConfig(weights="imagenet")
    plain, odd = TrainingConfig(recipe="probe"), TrainingConfig(recipe="probe", learning_rate=0.1, max_epochs=3)
    assert resolve_training(plain, model) == resolve_training(odd, model)
    assert tiny_job(prepared, recipe="finetune").probe.key == tiny_job(prepared, recipe="probe").key
