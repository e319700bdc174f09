"""Prometheus' alert rules, held by its own promtool against series in which something is wrong."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from rollouts import stand_in

FOLDER = Path(__file__).parents[1] / "serving/stack/prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
CLASSIFIER = 'job="classifier",instance="172.20.0.3:3000"'
MODEL = 'model="classifier",version="3"'
# Something wrong from the start, by alert: the series, one value a minute.
WRONG = {
    "EndpointDown": {f"up{{{CLASSIFIER}}}": "0x20"},
    "EndpointGone": {f"up{{{CLASSIFIER}}}": "1 1 _x30"},
    "EndpointFails": {
        f'convoy_requests_total{{status="200",{MODEL}}}': "0+95x20",
        f'convoy_requests_total{{status="500",{MODEL}}}': "0+5x20",
    },
    "EndpointOverloaded": {
        f'convoy_requests_total{{status="200",{MODEL}}}': "0+90x20",
        f'convoy_requests_total{{status="503",{MODEL}}}': "0+10x20",
    },
    "EndpointSlow": {
        f'convoy_request_seconds_bucket{{route="/classify",le="{le}",{MODEL}}}': f"0+{count}x20"
        for le, count in (("1", 90), ("2.5", 100), ("+Inf", 100))
    },
    "QueueLong": {
        f'convoy_queue_wait_seconds_bucket{{le="{le}",{MODEL}}}': f"0+{count}x20"
        for le, count in (("0.5", 80), ("1", 100), ("+Inf", 100))
    },
    "ServerDown": {'up{job="prefect",instance="prefect:4200"}': "0x20"},
    "ServerMemoryHigh": {'process_resident_memory_bytes{job="prefect"}': "1000000000x20"},
    "PrometheusCannotWrite": {'prometheus_tsdb_wal_writes_failed_total{job="prometheus"}': "0+1x20"},
}
WELL = {
    f"up{{{CLASSIFIER}}}": "1x20",
    'up{job="prefect"}': "1x20",
    f'convoy_requests_total{{status="200",{MODEL}}}': "0+1000x20",
    f'convoy_requests_total{{status="500",{MODEL}}}': "0+1x20",
    f'convoy_request_seconds_bucket{{route="/classify",le="0.05",{MODEL}}}': "0+1000x20",
    f'convoy_request_seconds_bucket{{route="/classify",le="+Inf",{MODEL}}}': "0+1000x20",
    'process_resident_memory_bytes{job="prometheus"}': "100000000x20",
}


def test_every_alert_says_what_to_look_at_and_has_its_case():
    assert {rule["alert"] for rule in RULES} == WRONG.keys()
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_alerts_name_metrics_that_there_are():
    metrics = (Path(__file__).parents[1] / "serving/endpoint/metrics.py").read_text()
    for name in set(re.findall(r"\bconvoy_\w+", str(RULES))):
        assert f'"{name.removesuffix("_bucket")}"' in metrics


def case(series, alerts):
    """One test as promtool reads it: after 20 minutes, these alerts fire and no other."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "20m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
            }
        ],
    }


def promtool(*arguments, mounts):
    volumes = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=promtool", *volumes, stand_in("prometheus")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_alerts_fire_where_something_is_wrong_and_only_there(tmp_path):
    cases = [case(WELL, []), *(case(series, [alert]) for alert, series in WRONG.items())]
    tests = {"rule_files": ["/etc/prometheus/alerts.yml"], "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    tmp_path.chmod(0o755)
    (tmp_path / "password").touch()
    mounts = {FOLDER: "/etc/prometheus", tmp_path: "/tests", tmp_path / "password": "/run/secrets/prefect_password"}
    promtool("check", "config", "/etc/prometheus/prometheus.yml", mounts=mounts)
    promtool("test", "rules", "/tests/tests.yml", mounts=mounts)
