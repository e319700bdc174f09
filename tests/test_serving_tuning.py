import logging
from dataclasses import replace

import pytest
from test_serving_classifier import make_model, make_quantized

from core.errors import UserError
from models.exported.predictor import read_model_manifest
from serving.packaging.tuning import (
    Packing,
    check_memory,
    choose_max_batch,
    choose_num_cores,
    choose_runtime,
    measure_packing,
)
from serving.targets import ONNXRUNTIME, ONNXRUNTIME_INT8, TARGETS, TORCH


@pytest.mark.parametrize(
    ("rates", "apart", "expected"),
    [
        pytest.param({1: 50.0, 2: 52.0, 4: 51.0, 8: 49.0}, 50.0, 1, id="no gain"),
        pytest.param({1: 50.0, 2: 40.0, 4: 30.0, 8: 20.0}, 50.0, 1, id="a loss"),
        pytest.param({1: 50.0, 2: 70.0, 4: 96.0, 8: 100.0, 16: 99.0}, 50.0, 4, id="the smallest that is nearly best"),
        pytest.param({1: 50.0, 2: 60.0, 4: 80.0, 8: 100.0}, 50.0, 8, id="the largest"),
        pytest.param({1: 816.0, 8: 1309.0, 32: 1410.0}, 1735.0, 1, id="single images, one on each core, are faster"),
        pytest.param({1: 525.0, 8: 946.0, 16: 1035.0}, 576.0, 16, id="batches are faster than that too"),
    ],
)
def test_batches_are_as_large_as_they_pay(rates, apart, expected):
    assert choose_max_batch(rates, apart) == expected


@pytest.mark.parametrize(
    ("lone_ms", "min_sooner_ms", "expected"),
    [
        pytest.param({1: 11.4, 2: 6.4}, 1.0, 2, id="together they are faster"),
        pytest.param({1: 0.93, 2: 0.61}, 1.0, 1, id="faster, but of little"),
        pytest.param({1: 0.93, 2: 0.61}, 0.0, 2, id="faster, and that is wanted"),
        pytest.param({1: 0.2, 2: 0.4}, 0.0, 1, id="slower"),
        pytest.param({1: 3.0}, 1.0, 1, id="there is one"),
    ],
)
def test_a_prediction_takes_as_many_cores_as_pay(lone_ms, min_sooner_ms, expected):
    assert choose_num_cores(lone_ms, min_sooner_ms) == expected


@pytest.mark.parametrize("name", ["cpu", "edge"])
def test_cores_and_curve_are_measured_for_the_sizes_of_the_target(tmp_path, name):
    target = TARGETS[name]
    packing = measure_packing(make_model(tmp_path), ONNXRUNTIME, target)
    assert packing.num_cores in packing.lone_ms
    assert set(packing.lone_ms) == {1, target.num_cores}
    assert tuple(packing.images_per_second) == target.batch_sizes
    assert packing.max_batch in target.batch_sizes
    measured = [*packing.lone_ms.values(), *packing.images_per_second.values(), packing.apart_per_second]
    assert all(figure is not None and figure > 0 for figure in measured)
    assert Packing.model_validate_json(packing.model_dump_json()) == packing


def test_a_target_of_one_size_is_not_timed(tmp_path):
    packing = measure_packing(tmp_path, TORCH, TARGETS["gpu"])
    expected = Packing(
        precision="bf16", max_batch=64, num_cores=0, lone_ms={}, images_per_second={}, apart_per_second=None
    )
    assert packing == expected


@pytest.mark.parametrize(("name", "cores", "expected"), [("cpu", 1, 2), ("cpu", 2, 1), ("edge", 1, 1), ("gpu", 0, 1)])
def test_all_cores_of_a_target_predict(name, cores, expected):
    assert TARGETS[name].streams(cores) == expected


@pytest.mark.parametrize("name", ["cpu", "edge"])
def test_int8_is_taken_where_it_was_accepted(tmp_path, name, caplog):
    manifest = read_model_manifest(make_quantized(tmp_path))
    assert choose_runtime(manifest, TARGETS[name], name) is ONNXRUNTIME_INT8
    assert caplog.text == ""


def test_where_int8_was_refused_fp32_is_taken_and_the_reason_told(tmp_path, caplog):
    manifest = read_model_manifest(make_quantized(tmp_path, refusal="it is slower"))
    with caplog.at_level(logging.WARNING, "convoy"):
        assert choose_runtime(manifest, TARGETS["edge"], "edge") is ONNXRUNTIME
    assert "edge in fp32, not int8: it is slower" in caplog.text


def test_a_model_that_the_memory_cannot_hold_is_refused(tmp_path):
    model, edge = make_model(tmp_path), TARGETS["edge"]
    check_memory(model, ONNXRUNTIME, edge, "edge")
    with pytest.raises(UserError, match="needs about 130 MB on edge, whose limit is 100 MB"):
        check_memory(model, ONNXRUNTIME, replace(edge, memory_mb=100), "edge")


@pytest.mark.parametrize("name", TARGETS)
def test_the_rows_are_whole(name):
    target = TARGETS[name]
    assert target.batch_sizes == tuple(sorted(target.batch_sizes))
    assert target.batch_sizes[0] == 1 or len(target.batch_sizes) == 1
    assert target.num_cores <= target.cpus
    assert set(target.platforms) <= {"linux/amd64", "linux/arm64"}


def test_the_edge_is_one_core_and_256_mb():
    edge = TARGETS["edge"]
    assert (edge.num_cores, edge.cpus, edge.memory_mb) == (1, 1, 256)
    assert edge.platforms == ("linux/amd64", "linux/arm64")
