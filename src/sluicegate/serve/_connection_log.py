"""How the server logs a connection that fails."""

from __future__ import annotations

import logging
from typing import Any, cast


LOGGER = logging.getLogger("sluicegate.serve")


def note_failure(error: Exception) -> None:
    """Log what a connection raised, unless it is only that the client has gone."""
    left: Any = error
    if isinstance(error, ExceptionGroup):
        left = cast("Any", error).split(OSError)[1]
    if left is not None and not isinstance(left, OSError):
        LOGGER.warning("a connection failed: %r", left, exc_info=left)
