from pathlib import Path

from test_serving_classifier import make_model

from models.exported.predictor import read_model_manifest
from serving.endpoint.metrics import Metrics


def test_batches_and_waits_are_counted_under_the_model(tmp_path: Path):
    metrics = Metrics()
    model = metrics.of(read_model_manifest(make_model(tmp_path)))
    model.batched(3, [0.002, 0.02, 0.2])
    model.batched(1, [0.0])
    model.predicted(0.97, uncertain=True)
    lines = metrics.expose().decode().splitlines()
    labels = 'model="Strongest Color",version="3"'
    bucket = 'model="Strongest Color",version="3"}'
    assert f"convoy_batch_size_count{{{labels}}} 2.0" in lines
    assert f"convoy_uncertain_total{{{labels}}} 1.0" in lines
    assert f"convoy_batch_size_sum{{{labels}}} 4.0" in lines
    assert f'convoy_queue_wait_seconds_bucket{{le="0.025",{bucket} 3.0' in lines
    assert f'convoy_confidence_bucket{{le="0.95",{bucket} 0.0' in lines
    assert f'convoy_confidence_bucket{{le="0.99",{bucket} 1.0' in lines


def test_a_new_model_has_counts_of_its_own(tmp_path: Path):
    metrics = Metrics()
    for number, version in enumerate(("3", "4")):
        model = metrics.of(read_model_manifest(make_model(tmp_path / version, version=version)))
        for _ in range(number + 1):
            model.answered("/classify", 200, 0.01)
            model.rejected("too_large")
    text = metrics.expose().decode()
    for version, count in (("3", 1.0), ("4", 2.0)):
        labels = f'model="Strongest Color",route="/classify",status="200",version="{version}"'
        assert f"convoy_requests_total{{{labels}}} {count}" in text
        labels = f'model="Strongest Color",reason="too_large",version="{version}"'
        assert f"convoy_rejections_total{{{labels}}} {count}" in text
