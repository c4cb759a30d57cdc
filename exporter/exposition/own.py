"""Samples of the exporter itself: its version and its configuration."""

import platform
from collections.abc import Iterator

from exporter.metrics import own
from exporter.metrics.family import Sample
from exporter.state import ReloadStatus
from exporter.version import REVISION, VERSION


def own_samples(reload: ReloadStatus) -> Iterator[Sample]:
    """Version and configuration."""
    yield Sample(
        own.BUILD_INFO,
        (
            ("version", VERSION),
            ("python_version", platform.python_version()),
            ("revision", REVISION),
        ),
        1.0,
    )
    yield Sample(own.CONFIG_LAST_RELOAD_SUCCESSFUL, (), float(reload.successful))
    yield Sample(
        own.CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS, (), reload.last_success_unix_seconds
    )
