"""The HTTP library: httpx2, or its predecessor httpx, which has the same names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ModuleNotFoundError:
        try:
            import httpx  # noqa: ASYNC127 - where only that is installed
        except ModuleNotFoundError as error:
            msg = 'sluicegate.client needs httpx2; expected `pip install "sluicegate[client]"`'
            raise ModuleNotFoundError(msg, name=error.name) from error

__all__ = ["httpx", "library_of"]


def library_of(client: httpx.AsyncClient) -> Any:
    """Return the library of a client: httpx2 or httpx, whichever its user has chosen."""
    # The root class belongs to the library, even if a subclass does not.
    root = type(client).__mro__[-2]
    return sys.modules[root.__module__.partition(".")[0]]
