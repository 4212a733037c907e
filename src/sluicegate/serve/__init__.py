"""Serve workflows over HTTP: start runs, stream their events, answer their questions, cancel them.

Requires Starlette: ``pip install "sluicegate[serve]"``.
"""

from __future__ import annotations


try:
    from sluicegate.serve._app import WorkflowApp, asgi_app
    from sluicegate.serve._events import ServerStopping, StreamGap
    from sluicegate.serve._guards import bearer_token
except ModuleNotFoundError as _error:
    if _error.name != "starlette":
        raise
    _msg = 'sluicegate.serve needs Starlette; expected `pip install "sluicegate[serve]"`'
    raise ModuleNotFoundError(_msg, name=_error.name) from _error


__all__ = ["ServerStopping", "StreamGap", "WorkflowApp", "asgi_app", "bearer_token"]
