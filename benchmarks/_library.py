"""The library under penstock: Trio, or AnyIO on asyncio when BENCHMARK_LIBRARY=asyncio says so."""

import importlib
import os
from typing import Any


# The works need little, and most of it has the same name in both. AnyIO is imported only
# where it is measured: a Trio program would not have it either.
lib: Any = importlib.import_module(
    "anyio" if os.environ.get("BENCHMARK_LIBRARY") == "asyncio" else "trio"
)
importlib.import_module(lib.__name__ + ".lowlevel")


def open_group() -> Any:
    """A nursery or a task group."""
    return lib.open_nursery() if lib.__name__ == "trio" else lib.create_task_group()


def tasks_living() -> int:
    """How many tasks there are."""
    if lib.__name__ == "trio":
        return lib.lowlevel.current_statistics().tasks_living
    return len(lib.get_running_tasks())
