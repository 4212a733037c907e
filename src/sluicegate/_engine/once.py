"""``ctx.once``: calls of a step whose stored results later attempts reuse."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from sluicegate._annotations import is_async
from sluicegate._engine.journal import KeptResult, OnceCall
from sluicegate._errors import WorkflowRuntimeError
from sluicegate._exceptions import holds_cancelled, matches
from sluicegate._loop.run_in_context import let_interrupts_in


if TYPE_CHECKING:
    from collections.abc import Callable

    from sluicegate._context import Context
    from sluicegate._engine.journal import StepJournal
    from sluicegate._engine.run import Run
    from sluicegate._loop import Backend


async def call_once(  # noqa: PLR0917
    run: Run,
    context: Context[Any],
    journal: StepJournal,
    key: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    recorded: tuple[type[Exception], ...],
) -> Any:
    """Return the stored result of a key, or call the function and store its result.

    A checkpoint. While another task of the step calls the function of the same key, this one waits; it
    calls its own if the other stores nothing.
    """
    backend, _ = run.live()
    while isinstance(found := journal.once.get(key), OnceCall):
        await _wait_for(backend, found, key)
    if found is not None:
        await _until_durable(run, backend)
        return _given(run, key, found)
    journal.once = journal.once or {}
    call = journal.once[key] = OnceCall(backend.current_task())
    failure: BaseException | None = None
    try:
        await backend.checkpoint_if_cancelled()
        try:
            value = await _call(run, key, function, arguments)
        except BaseException as error:  # noqa: ASYNC103 - kept, and raised below
            cancelled = backend.Cancelled
            if holds_cancelled(error, cancelled) or not matches(error, recorded, cancelled):
                raise
            value = failure = error
        encoded = run.graph.codec(run.options.classes).encode(value, f"the result of once({key!r})")
        journal.once[key] = found = KeptResult(encoded, is_failure=failure is not None)
        _record(run, context, key, found)
    finally:
        if journal.once[key] is call:
            del journal.once[key]
        for waiter in call.waiters:
            waiter.wake()
    try:
        await _until_durable(run, backend)
        return _given(run, key, found, failure)
    finally:
        del failure  # or this frame and its exception keep each other alive


async def _wait_for(backend: Backend, call: OnceCall, key: str) -> None:
    """Wait until the call of another task of the step has ended.

    Raises:
        WorkflowRuntimeError: The call is one of this task, which waits for this one.
    """
    if call.task is backend.current_task():
        msg = (
            f"once({key!r}) was called within the function of once({key!r}), which would wait for "
            "itself; expected another key"
        )
        raise WorkflowRuntimeError(msg)
    waiter = backend.waiter()
    call.waiters.append(waiter)
    try:
        await waiter.wait()
    finally:
        call.waiters.remove(waiter)


async def _call(run: Run, key: str, function: Callable[..., Any], arguments: Any) -> Any:
    """Call the function in this task; a plain one in a thread, as a ``def`` step."""
    if is_async(function):
        awaitable = function(*arguments)
        let_interrupts_in(getattr(awaitable, "cr_code", None))
        return await awaitable
    from sluicegate._loop.threads import ThreadStep  # noqa: PLC0415 - not everybody needs it

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        result = function(*arguments)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            msg = (
                f"the function of once({key!r}) was called in a thread and returned an awaitable; "
                f"expected an async function and its arguments: `ctx.once({key!r}, fetch, url)`"
            )
            raise WorkflowRuntimeError(msg)
        return result

    in_thread = ThreadStep(call, abandon_on_cancel=False)
    async with in_thread.place(run.options.max_threads) as place:
        return await in_thread.call(place, *arguments)


def _record(run: Run, context: Context[Any], key: str, result: KeptResult) -> None:
    """Record a result if the run is durable."""
    if run.journal is not None:
        delivery = context.redelivery
        run.journal.once(delivery.key, key, result.encoded, failed=result.is_failure)


async def _until_durable(run: Run, backend: Backend) -> None:
    """Wait until the result is durable. A checkpoint."""
    if run.journal is None:
        await backend.checkpoint()
    else:
        await run.journal.writer.reached(run.journal.writer.sequence)


def _given(run: Run, key: str, result: KeptResult, cause: BaseException | None = None) -> Any:
    """Return a fresh copy of the stored result, or raise the stored failure."""
    codec = run.graph.codec(run.options.classes)
    value = codec.decode(result.encoded, f"the result of once({key!r})")
    if not result.is_failure:
        return value
    try:
        raise value from cause
    finally:
        del value, cause  # or this frame and its exception keep each other alive
