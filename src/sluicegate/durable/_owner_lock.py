"""A file lock that shows whether a process of this machine is alive.

The operating system drops the lock when the process ends, however that happens. The file is created
and locked under a temporary name, so it never appears without its lock. A check takes a shared lock
for a moment, so several processes can check at a time. On Windows there are no such locks, and
owners are only known by their leases.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, final
from weakref import WeakSet


if TYPE_CHECKING or sys.platform != "win32":
    import fcntl


@cache
def machine() -> str:
    """Return the name of this machine since it was booted; its containers have the same one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


@final
class OwnerLock:
    """A lock that lasts until it is released, or the process ends.

    Args:
        directory: The directory of the lock files; created if it does not exist.
        owner: The name of the file.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, directory: Path, owner: str) -> None:
        self._path = directory / owner
        self._descriptor = -1
        if sys.platform == "win32":
            return
        directory.mkdir(exist_ok=True)
        fresh = directory / f".{owner}"
        self._descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(self._path)
        except BaseException:
            self.close()
            fresh.unlink(missing_ok=True)
            raise
        _held.add(self)

    def release(self) -> None:
        """Delete the file, and then release the lock. May be called again."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Close the file. The lock lasts while a forked process has it open as well."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def has_ended(directory: Path, owner: str) -> bool:
    """Whether the process that had the lock of an owner has ended. If in doubt, it has not."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(directory / owner, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def sweep(directory: Path, owner: str) -> None:
    """Delete the file of an owner that has ended."""
    with suppress(OSError):
        (directory / owner).unlink()


#: The locks of this process. A child that is forked has its files open too, and must not keep them
#: locked when the parent ends.
_held: WeakSet[OwnerLock] = WeakSet()


def _close_in_child() -> None:
    for lock in [*_held]:
        lock.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)
