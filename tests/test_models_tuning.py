import pytest
import torch
from conftest import tiny_job

from models.train import train
from models.tuning import Execution, fastest, tune

ALL = [Execution(precision=precision, channels_last=last) for precision in ("fp32", "bf16") for last in (True, False)]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((4, 3, 2, 1), 3), ((1, 2, 3, 4), 0), ((1, 0.97, 0.96, 0.951), 0), ((1, 0.9, 0.87, 0.8), 3)],
)
def test_the_clearly_fastest_is_taken(seconds, chosen):
    times = dict(zip(ALL, seconds, strict=True))
    assert fastest(ALL, times.__getitem__) == ALL[chosen]


def test_what_is_configured_is_not_measured(prepared, tmp_path, caplog):
    job = tiny_job(prepared, precision="bf16", channels_last=True)
    assert tune(job, tmp_path / "note") == job
    assert not (tmp_path / "note").exists()


@pytest.mark.parametrize(
    ("capabilities", "precisions"),
    [({"avx2": True, "avx512_bf16": False}, {"fp32"}), ({"avx512_bf16": True}, {"fp32", "bf16"})],
)
def test_bf16_is_tried_on_cpus_that_have_it(prepared, monkeypatch, capabilities, precisions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    tried = []
    monkeypatch.setattr("models.tuning.fastest", lambda candidates, _: tried.extend(candidates) or candidates[0])
    tune(tiny_job(prepared, precision="auto", channels_last="auto", accelerator="cpu"))
    assert {candidate.precision for candidate in tried} == precisions


def test_what_was_measured_is_kept(prepared, tmp_path, monkeypatch):
    job = tiny_job(prepared, precision="auto", channels_last="auto")
    tuned = tune(job, tmp_path / "note")
    assert tuned.training.precision in ("fp32", "bf16")
    assert tuned.training.channels_last in (True, False)
    monkeypatch.setattr("models.tuning.fastest", lambda *_: pytest.fail("measured again"))
    assert tune(job, tmp_path / "note") == tuned


@pytest.mark.parametrize("content", ["", "{}", '{"precision": "fp8", "channels_last": true}'])
def test_a_note_that_cannot_be_read_is_made_anew(prepared, tmp_path, content):
    (tmp_path / "note").write_text(content)
    tune(tiny_job(prepared, precision="auto", channels_last="auto"), tmp_path / "note")
    assert Execution.model_validate_json((tmp_path / "note").read_text())


def test_a_note_of_other_options_is_not_used(prepared, tmp_path):
    (tmp_path / "note").write_text(ALL[3].model_dump_json())
    tuned = tune(tiny_job(prepared, precision="auto", channels_last=True), tmp_path / "note")
    assert tuned.training.channels_last is True


def test_measuring_changes_nothing_of_what_is_trained(prepared, tmp_path, monkeypatch):
    """The weights start from the seed, whatever was drawn before."""
    from checkpoints import assert_equal

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(
        "models.tuning.fastest", lambda candidates, seconds: max(candidates, key=seconds) and candidates[0]
    )
    train(tiny_job(prepared, max_epochs=1, precision="auto"), tmp_path / "measured")
    train(tiny_job(prepared, max_epochs=1, precision="fp32"), tmp_path / "configured")
    assert_equal(tmp_path / "measured" / "last.ckpt", tmp_path / "configured" / "last.ckpt")
