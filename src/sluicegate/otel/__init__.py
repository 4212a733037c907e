"""Traces and metrics of runs for OpenTelemetry: an observer that makes spans.

``pip install "sluicegate[otel]"`` installs OpenTelemetry's API, which does nothing by itself. Where
spans go is decided by the program, with OpenTelemetry's SDK.
"""

from __future__ import annotations


try:
    from ._observer import OpenTelemetryObserver as OpenTelemetryObserver
except ModuleNotFoundError as _exc:
    if (_exc.name or "").partition(".")[0] != "opentelemetry":
        raise
    _msg = 'sluicegate.otel needs the opentelemetry-api package: pip install "sluicegate[otel]"'
    raise ModuleNotFoundError(_msg, name="opentelemetry") from _exc


__all__ = ["OpenTelemetryObserver"]
