"""CPU-bound steps in worker processes: their calls, answers and faults."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import sys
from io import BytesIO
from math import inf
from typing import TYPE_CHECKING, Any, final

from sluicegate._errors import WorkflowRuntimeError, stop_iteration
from sluicegate._events.generics import named_classes
from sluicegate._exceptions import note_once
from sluicegate._loop import current_backend
from sluicegate._loop.cleanup import current_cleanup
from sluicegate._loop.process_worker import (
    BEGAN,
    ERROR,
    EVENT,
    LOAD,
    LOG,
    PICKLABLE,
    PROGRESS,
    REFUSAL,
    REPLY,
    RESULT,
    StepOfCall,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sluicegate._loop import Backend
    from sluicegate._loop.process_pool import ProcessPlace, WorkerProcess


#: Real seconds for which a jumping clock waits for a step in a process.
PATIENCE = 0.2


@final
class ProcessStep:
    """The coroutine function with which the engine calls a step in a worker process.

    A checkpoint. Cancelled, it kills the process and waits for its end. The workflow object is not
    sent to the process. The step gets a context with the operations of
    :mod:`sluicegate._engine.process_context`.

    Calling it waits for a free process first. The engine does that separately, because the step's
    timeout excludes it: ``async with step.place() as place: await step.call(place, workflow,
    *arguments)``.

    Args:
        function: A static method or a free function, called as ``function(*arguments)``. It and
            its arguments are pickled; see :func:`process_faults`.
        context_at: The position of the context among the arguments, or None if it takes none.

    Raises:
        BaseException: From a call: the exception of the step, with its traceback in a note.
        WorkflowRuntimeError: From a call: an argument, the result or the exception cannot be
            pickled, the process died, or none could be started.
    """

    def __init__(self, function: Callable[..., Any], context_at: int | None = None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._context_at = context_at
        self._name = str(getattr(function, "__qualname__", function)).rpartition("<locals>.")[2]

    async def __call__(self, _workflow: object, /, *arguments: Any) -> Any:
        async with self.place() as place:
            return await self.call(place, _workflow, *arguments)

    def place(self, _limit: int = 0, /) -> _StepPlace:
        """Return a context manager for a worker process that has imported the step."""
        from sluicegate._loop.process_pool import ProcessPlace  # noqa: PLC0415 - imported on use

        return _StepPlace(ProcessPlace(), self._function, self._name)

    async def call(self, place: ProcessPlace, _workflow: object, /, *arguments: Any) -> Any:
        """Call the step in the process of ``place``. A checkpoint."""
        backend = current_backend()
        invocation: Any = current_cleanup.get()  # the engine's, in the step's own context
        context: Any = None
        about: tuple[int, StepOfCall] | None = None
        rest = list(arguments)
        if self._context_at is not None:
            context = rest.pop(self._context_at)
            about = self._context_at, _describe(context, invocation.step)
        kinds = ", ".join(type(argument).__name__ for argument in rest)
        request = _pack((self._function, rest), self._name, kinds)
        around = () if invocation is None else invocation.around_in_process(_dumps)
        conversation = _Conversation(backend, self._name, context, invocation, around)
        place.is_at_work = True
        backend.hold_clock(PATIENCE)
        try:
            kind, answer = await conversation.hold(place, request, about)
        except _process_error() as error:
            # The process and its child processes ended during the call.
            ending = await place.die()  # noqa: ASYNC120 - it shields itself
            msg = (
                f"the worker process of the step {self._name} died before it answered ({ending}: "
                f"{error}); expected it to return: look for a crash in native code, too little "
                "memory, os._exit(), or a step that closes descriptors which it has not opened"
            )
            raise WorkflowRuntimeError(msg) from error
        finally:
            backend.release_clock(PATIENCE)
        place.is_at_work = False
        return read_answer(self._name, kind, answer)


def _dumps(content: object) -> bytes:
    return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def _pack(content: Any, name: str, kinds: str) -> bytes:
    try:
        return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        msg = (
            f"the process step {name} cannot be given {kinds}, because it cannot be pickled ({error}); "
            f"expected {PICKLABLE}"
        )
        raise WorkflowRuntimeError(msg) from error


def _process_error() -> type[Exception]:
    from sluicegate._loop.process_pool import BrokenProcessError  # noqa: PLC0415 - as above

    return BrokenProcessError


@final
class _StepPlace:
    """A place in the pool of worker processes, whose process has imported the step."""

    __slots__ = ("_function", "_name", "_place")

    def __init__(self, place: ProcessPlace, function: Callable[..., Any], name: str) -> None:
        self._place = place
        self._function = function
        self._name = name

    async def __aenter__(self) -> ProcessPlace:
        try:
            place = await self._place.__aenter__()
            try:
                await self._load(place)
            except BaseException:
                await self.__aexit__()  # noqa: ASYNC102, ASYNC120 - it shields itself
                raise
        except (_process_error(), OSError) as error:
            msg = (
                f"no worker process could be started for the step {self._name} ({error}); expected "
                f"{sys.executable} to run, and to find sluicegate and the step's module: its own "
                "words are on stderr"
            )
            raise WorkflowRuntimeError(msg) from error
        return place

    async def _load(self, place: ProcessPlace) -> None:  # noqa: ASYNC910 - not if it is there
        function = _pack(self._function, self._name, "the function")
        assert place.worker is not None
        if function not in place.worker.loaded:
            backend = current_backend()
            conversation = _Conversation(backend, self._name)
            place.is_at_work = True
            backend.hold_clock(inf)
            try:
                kind, answer = await conversation.hold(place, function, None, load=True)
            finally:
                backend.release_clock(inf)
            place.is_at_work = False
            read_answer(self._name, kind, answer)
            place.worker.loaded.add(function)

    async def __aexit__(self, *exception: object) -> None:
        await self._place.__aexit__(*exception)  # noqa: ASYNC102 - it shields itself


@final
class _Conversation:
    """The frames of one call, on the event loop's side."""

    __slots__ = ("_around", "_backend", "_context", "_has_begun", "_invocation", "_name")

    def __init__(
        self,
        backend: Backend,
        name: str,
        context: Any = None,
        invocation: Any = None,
        around: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        self._around = around
        self._backend = backend
        self._context = context
        self._invocation = invocation
        self._name = name
        self._has_begun = False

    async def hold(
        self,
        place: ProcessPlace,
        request: bytes,
        about: tuple[int, StepOfCall] | None,
        *,
        load: bool = False,
    ) -> tuple[int, bytearray]:
        """Send a call, or a function to import; return the answering frame."""
        worker = place.worker
        assert worker is not None
        is_used = worker.calls > 0
        try:
            return await self._hold(worker, request, about, load=load)
        except _process_error():
            if self._has_begun or not is_used:
                raise
        # It died while it was idle, before the call began, so the call can be repeated.
        return await self._hold(await place.replace(), request, about, load=load)

    async def _hold(
        self,
        worker: WorkerProcess,
        request: bytes,
        about: tuple[int, StepOfCall] | None,
        *,
        load: bool,
    ) -> tuple[int, bytearray]:
        if load:
            await worker.send(self._backend, LOAD, request)
        else:
            await worker.call(self._backend, request, self._around, about)
        return await self._listen(worker)

    async def _listen(self, worker: WorkerProcess) -> tuple[int, bytearray]:
        backend = self._backend
        while True:
            kind, payload = await worker.receive(backend)
            if kind in (RESULT, ERROR, REFUSAL):
                return kind, payload
            if kind == EVENT:
                await worker.send(backend, REPLY, self._apply(worker.calls, payload))
            elif kind == LOG:
                _log(payload)
            elif kind == BEGAN:
                self._has_begun = True
            elif kind == PROGRESS:
                if self._invocation is not None and self._invocation.progress is not None:
                    self._invocation.progress.note()
            else:
                msg = f"it sent a frame of kind {kind}"
                raise _process_error()(msg)

    def _apply(self, current: int, payload: bytearray) -> bytes:
        """Call the method of the context that the step asks for; return the reply."""
        refusal: Exception | None = None
        try:
            number, what, arguments = _Unpickler(BytesIO(payload)).load()
        except Exception as why:  # noqa: BLE001 - raised in the process
            refusal = WorkflowRuntimeError(
                f"an event sent by the process step {self._name} cannot be unpickled ({why}); expected "
                "fields that pickle takes, and classes at the top of a module"
            )
        else:
            if number != current or self._context is None:
                msg = f"{what} was called after the step had ended; expected it while the step runs"
                refusal = WorkflowRuntimeError(msg)
            else:
                try:
                    getattr(self._context, what)(*arguments)
                except Exception as error:  # noqa: BLE001 - raised in the process
                    refusal = error
        try:
            return pickle.dumps(refusal)
        except Exception:  # noqa: BLE001 - its text is sent in any case
            return pickle.dumps(WorkflowRuntimeError(f"{type(refusal).__name__}: {refusal}"))


def _describe(context: Any, step: Any) -> StepOfCall:
    return StepOfCall(
        run_id=context.run_id,
        name=step.name,
        label=step.label,
        num_workers=step.num_workers,
        timeout=step.timeout,
        attempt=context.step.attempt,
        delivery_key=context.delivery_key,
        fencing_token=context.fencing_token,
        has_idle_timeout=step.options.idle_timeout is not None,
    )


def _log(payload: bytearray) -> None:
    import logging  # noqa: PLC0415 - only where a step logs

    fields: dict[str, Any] = _Unpickler(BytesIO(payload)).load()
    record = logging.makeLogRecord(fields)
    logger = logging.getLogger(None if record.name == "root" else record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _Unpickler(pickle.Unpickler):
    """Reads data from a worker process, which knows the main module as ``__mp_main__``."""

    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def read_answer(name: str, kind: int, answer: bytes | bytearray) -> Any:
    """Return the result of a step, or raise its exception.

    Args:
        name: The name of the step.
        kind: The kind of the frame that holds the answer.
        answer: The payload of the frame.
    """
    if kind == RESULT:
        try:
            return _Unpickler(BytesIO(answer)).load()
        except Exception as why:
            msg = (
                f"the result of the process step {name} cannot be unpickled ({why}); expected "
                "fields that pickle takes, and classes at the top of a module"
            )
            raise WorkflowRuntimeError(msg) from why
    if kind == ERROR:
        _raise_error(name, answer)
    what, kind_name, details = pickle.loads(answer)  # noqa: S301 - our own words
    if what == "unread":
        msg = (
            f"the worker process cannot find what the step {name} needs ({details}); expected the "
            "function and the classes of its events at the top of a module that can be imported, "
            'and the script\'s own code below `if __name__ == "__main__":`'
        )
    elif what == "unsent error":
        msg = (
            f"the process step {name} raised {kind_name}, which cannot be pickled; expected an "
            "exception that passes all arguments of its constructor to super().__init__(). "
            f"In the process: {details.rstrip()}"
        )
    else:
        msg = (
            f"the process step {name} returned {kind_name}, which cannot be pickled ({details}); "
            f"expected {PICKLABLE}"
        )
    raise WorkflowRuntimeError(msg)


def _raise_error(name: str, answer: bytes | bytearray) -> None:
    pickled, details = pickle.loads(answer)  # noqa: S301 - our own words, around the error's
    try:
        error: BaseException = _Unpickler(BytesIO(pickled)).load()
    except Exception as why:
        msg = (
            f"the exception of the process step {name} cannot be unpickled ({why}). In the process: "
            f"{details.rstrip()}"
        )
        raise WorkflowRuntimeError(msg) from why
    note_once(error, f"raised in a worker process by the step {name}:\n{details.rstrip()}")
    if issubclass(type(error), StopIteration):
        raise WorkflowRuntimeError(stop_iteration(name)) from error
    try:
        raise error
    finally:
        del error  # or this frame and its exception keep each other alive


def process_faults(
    function: Callable[..., Any], accepts: Sequence[type], returns: Sequence[type]
) -> list[str]:
    """Find the reasons why a function cannot be a process step, as far as they are known before.

    Args:
        function: The function itself, not the ``staticmethod`` around it.
        accepts: The event classes that it takes.
        returns: The event classes that it returns.

    Returns:
        The faults, each with its fix. Each text continues after the name of the step.
    """
    faults: list[str] = []
    if inspect.iscoroutinefunction(function):
        faults.append("is async and runs in a process; expected a plain `def`")
    if os.name != "posix":
        faults.append("runs in a process, which needs POSIX; expected `@step` without in_process")
    first = next(iter(inspect.signature(function).parameters), "")
    if first in ("self", "cls"):
        faults.append(
            f"takes {first!r}, which is not sent to a worker process; expected "
            "`@staticmethod` and the events alone: `def name(ev: SomeEvent) -> OtherEvent`"
        )
    if getattr(function, "__name__", "") == "<lambda>":
        faults.append(
            "is a lambda, which a worker process cannot find; expected "
            "`def name(ev: SomeEvent) -> OtherEvent` at the top of a module"
        )
    else:
        faults += _place_faults(function, "is")
    for kind in dict.fromkeys(named_classes([*accepts, *returns])):
        faults += _place_faults(kind, f"runs in a process, and its event class {kind.__name__} is")
    return faults


def _place_faults(thing: Any, begin: str) -> Iterator[str]:
    """Yield the reasons why a worker process would not find a function or class by its name."""
    path, module_name = thing.__qualname__, thing.__module__
    module = sys.modules.get(module_name)
    if "<locals>" in path:
        yield (
            f"{begin} defined inside a function, where a worker process cannot find it; expected "
            "it at the top of a module"
        )
    elif module_name in ("__main__", "__mp_main__") and not _is_main_importable():
        yield (
            f"{begin} defined in an interactive session or a program from stdin, which a worker "
            "process cannot import; expected it in a file"
        )
    elif _found(module, path) is not thing:
        yield (
            f"{begin} not the object that {module_name}.{path} names, so a worker process would "
            "find another; expected one definition of that name, at the top of its module"
        )


def _found(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _is_main_importable() -> bool:
    from sluicegate._loop.process_start import main_module  # noqa: PLC0415 - imported on use

    return main_module() is not None
