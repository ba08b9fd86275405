"""The load of processor, memory, disk, network and cards while a seed trains, where asked for.

MLflow measures it; its own monitor is not used, because it ends with the first request that fails.
"""

import threading
from collections.abc import Callable
from typing import Any

from mlflow.environment_variables import (
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING,
    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
)

from pose.errors import one_line

SAMPLING_SECONDS = 10.0


class SystemMetrics:
    """A thread that takes a sample every ten seconds, and one at the end.

    Args:
        monitor: MLflow's `SystemMetricsMonitor`, not started.
        add: records a sample, by its names in MLflow.
    """

    def __init__(self, monitor: Any, add: Callable[[dict[str, float]], None]) -> None:
        self._monitor = monitor
        self._add = add
        self._is_over = threading.Event()
        self._seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SAMPLING_SECONDS
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(self._seconds)
            self._monitor.collect_metrics()
            sample = self._monitor.aggregate_metrics()
            for monitor in self._monitor.monitors:
                monitor.clear_metrics()
            self._add({f"system/{name}": float(value) for name, value in sample.items()})

    def finish(self) -> None:
        """Take the last sample and end."""
        self._is_over.set()
        self._thread.join()


def watch_system(
    add: Callable[[dict[str, float]], None], say: Callable[[str], None]
) -> SystemMetrics | None:
    """Begin to watch, if `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING` asks for it.

    Args:
        say: told in one line if this machine lacks what it takes.
    """
    if not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get():
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # The run is named by whoever delivers the samples.
        monitor = SystemMetricsMonitor(run_id="")
    # A missing package, or a kernel that does not tell: neither is worth a training.
    except Exception as error:
        say(
            f"warning: system metrics cannot be recorded, found: {one_line(error)}; "
            "pip install psutil (and nvidia-ml-py for NVIDIA cards)"
        )
        return None
    return SystemMetrics(monitor, add)
