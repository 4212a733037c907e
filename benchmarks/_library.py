"""The library under a program: Trio, or AnyIO on asyncio."""

import importlib
from typing import Any


def load(name: str) -> Any:
    """
    Import what sluicegate runs on here.

    The works need little of it, and most has the same name in both. AnyIO is imported only where
    it is measured: a Trio program would not have it either.
    """
    lib = importlib.import_module({"trio": "trio", "asyncio": "anyio"}[name])
    importlib.import_module(lib.__name__ + ".lowlevel")
    return lib


def open_group(lib: Any) -> Any:
    """A nursery or a task group."""
    return lib.open_nursery() if lib.__name__ == "trio" else lib.create_task_group()


def tasks_living(lib: Any) -> int:
    """How many tasks there are."""
    if lib.__name__ == "trio":
        return lib.lowlevel.current_statistics().tasks_living
    return len(lib.get_running_tasks())
