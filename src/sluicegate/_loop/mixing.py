"""A note for errors raised by code that is written for another event loop than the run's."""

from __future__ import annotations

from typing import Any, cast

from sluicegate._exceptions import is_a, linked_leaves, note_once


#: Messages of asyncio, and of libraries on it, where no asyncio event loop runs.
_ASYNCIO = (
    "no running event loop",
    "no current event loop",
    "received unrecognized yield message",
    "'NoneType' object has no attribute 'create_future'",
    "'NoneType' object has no attribute 'create_task'",
    "should be used inside a task",
    "cannot determine the parent task",
)
#: Messages of Trio where Trio does not run.
_TRIO = (
    "must be called from async context",
    "Task got bad yield",
    "'RunContext' object has no attribute",
    "wasn't created by Trio",
    "await wasn't used with future",
)
#: Messages of AnyIO and sniffio where they find no event loop.
_NEITHER = ("unknown async library", "any asynchronous event loop", "no async library")

_args_of: Any = BaseException.__dict__["args"]


def note_mixing(error: BaseException, step: str, loop: str, *, in_thread: bool) -> None:
    """Add a note to a failure whose message shows that its code needs another event loop.

    Args:
        error: The exception of the step; each leaf of a group is searched, and its causes.
        step: The name of the step in messages.
        loop: The event loop of the run: ``"trio"`` or ``"asyncio"``.
        in_thread: Whether the step runs in a thread or a process, where there is no event loop.
    """
    other = "asyncio" if loop == "trio" else "trio"
    words: tuple[str, ...] = _ASYNCIO if loop == "trio" else _TRIO
    if in_thread:
        words = (*_ASYNCIO, *_TRIO, *_NEITHER)
    elif loop == "trio":
        words = (*words, *_NEITHER)
    if not any(word in text for text in _texts(error) for word in words):
        return
    if in_thread:
        note = (
            f"the step {step} is a `def` step, so it runs in a thread, where there is no event loop; "
            "expected an `async def` step, or `ctx.from_thread.run(async_function)`"
        )
    else:
        note = (
            f"the step {step} uses code for {_TITLES[other]}, and its run is on {_TITLES[loop]}; "
            f"expected AnyIO's names, which work on both (`await anyio.sleep(1)`, not "
            f"`{other}.sleep(1)`), or the run on {_TITLES[other]}: "
            f'`sluicegate.run(main, backend="{other}")`'
        )
    note_once(error, note)


_TITLES = {"trio": "Trio", "asyncio": "asyncio"}


def _texts(error: BaseException) -> list[str]:
    """Return the first argument of each exception in the chain of causes that is a text."""
    found: list[str] = []
    for one in linked_leaves(error, "__cause__"):
        args = cast("tuple[object, ...]", _args_of.__get__(one))
        found += [str.__str__(cast("str", text)) for text in args[:1] if is_a(text, str)]
    return found
