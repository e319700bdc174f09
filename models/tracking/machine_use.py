from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


def system_metrics() -> Callable[[], dict[str, float]]:
    """Return a function that measures the use of CPU, memory, disk, network and GPU."""
    monitor = SystemMetricsMonitor(run_id=None)

    def measure() -> dict[str, float]:
        monitor.collect_metrics()
        measured = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for each in monitor.monitors:
            each.clear_metrics()
        return measured

    return measure
