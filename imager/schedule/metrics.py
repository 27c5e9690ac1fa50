"""A run's result for Prometheus: the text format that node_exporter's textfile collector reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imager.store.files import write_durably


class Metric(NamedTuple):
    """One gauge of one schedule."""

    name: str
    help: str
    value: float


def metrics_text(metrics: Sequence[Metric], schedule: str) -> str:
    """The file's content."""
    label = schedule.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for metric in metrics:
        lines += [
            f"# HELP imager_{metric.name} {metric.help}",
            f"# TYPE imager_{metric.name} gauge",
            f'imager_{metric.name}{{schedule="{label}"}} {metric.value:.15g}',
        ]
    return "\n".join(lines) + "\n"


def write_metrics(path: Path, metrics: Sequence[Metric], schedule: str) -> None:
    """Replace the file at once, so that nobody reads half of it; OSError where that fails."""
    write_durably(path, metrics_text(metrics, schedule))
