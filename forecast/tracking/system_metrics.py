"""Metrics of the machine in the runs of jobs, on request."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from forecast.config import RegistryConfig
from forecast.errors import ConfigError

_LOG = logging.getLogger(__name__)


def is_enabled(config: RegistryConfig) -> bool:
    """Return whether runs log metrics of the machine.

    Raises ConfigError if the config asks for them and psutil is missing; if only the environment does, logs a warning.
    """
    by_environment = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")
    if not config.system_metrics and not by_environment:
        return False
    with suppress(ImportError):
        import_module("psutil")
        return True
    message = "metrics of the machine need psutil: pip install 'gatecast[system]'"
    if config.system_metrics:
        raise ConfigError(f"registry.system_metrics: {message}")
    _LOG.warning("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING: %s; none are logged", message)
    return False


@contextmanager
def system_metrics(uri: str, run_id: str) -> Iterator[None]:
    """Log metrics of the machine into a run, in a thread: every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
