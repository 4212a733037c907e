"""Mixing: a note for errors that come of code for another event loop than the run's."""

from __future__ import annotations

from typing import Any, cast

from sluicegate._exceptions import add_note, is_a, leaves_of, notes_of


#: What asyncio's names, and the libraries on them, say where no event loop of asyncio runs.
_ASYNCIO = (
    "no running event loop",
    "no current event loop",
    "received unrecognized yield message",
    "'NoneType' object has no attribute 'create_future'",
    "'NoneType' object has no attribute 'create_task'",
    "should be used inside a task",
    "cannot determine the parent task",
)
#: What Trio's names say where Trio does not run.
_TRIO = (
    "must be called from async context",
    "Task got bad yield",
    "'RunContext' object has no attribute",
    "wasn't created by Trio",
    "await wasn't used with future",
)
#: What AnyIO and sniffio say where they find no event loop.
_NEITHER = ("unknown async library", "any asynchronous event loop", "no async library")

_args_of: Any = BaseException.__dict__["args"]
_cause_of: Any = BaseException.__dict__["__cause__"]


def note_mixing(error: BaseException, step: str, loop: str, *, in_thread: bool) -> None:
    """Note on a failure that it comes of code for another event loop, if its message says so.

    Args:
        error: What the step raised; of a group each leaf is looked at, and what caused it.
        step: The step, as messages name it.
        loop: ``"trio"`` or ``"asyncio"``: what the run is on.
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
    if note not in notes_of(error):
        add_note(error, note)


_TITLES = {"trio": "Trio", "asyncio": "asyncio"}


def _texts(error: BaseException) -> list[str]:
    found: list[str] = []
    seen: set[int] = set()
    todo = leaves_of(error)
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        args = cast("tuple[object, ...]", _args_of.__get__(one))
        found += [str.__str__(text) for text in map(_first_text, args[:1]) if text is not None]
        cause = cast("BaseException | None", _cause_of.__get__(one))
        if cause is not None:
            todo += leaves_of(cause)
    return found


def _first_text(value: object) -> str | None:
    return cast("str", value) if is_a(value, str) else None
