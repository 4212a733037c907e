"""Retries: which failures of a step are retried and after how long, and their record."""

from __future__ import annotations

import functools
import inspect
import random
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._annotations import is_count
from sluicegate._errors import WorkflowRuntimeError, WorkflowValidationError, brief
from sluicegate._exceptions import add_note, counted_leaves, matches, note_once


if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from tenacity import RetryCallState


#: How many failures of one delivery are kept: the first, and the newest others.
KEPT = 1000

_SHOWN_LETTERS = 200
_SHOWN_FIRST, _SHOWN_LAST = 3, 5


@attrs.frozen(kw_only=True, repr=False)
class Retry:
    """Which failures of a step are retried, after how long, and how often.

    ::

        @step(retry=Retry(stop=5, wait=0.5, when=OSError))
        @step(retry=Retry(stop=stop_after_delay(60), wait=wait_exponential_jitter(max=10)))

    Each argument is a plain value, or an object of tenacity (``pip install "sluicegate[retry]"``)
    with its combinations by ``|``, ``&`` and ``+``, or a function that takes tenacity's
    ``RetryCallState``. Such a function is called in the event loop and must not block. It can
    read ``fn`` (the step), ``attempt_number``, ``outcome``, ``seconds_since_start``,
    ``idle_for`` and ``upcoming_sleep``; times count from the start of the first attempt.

    Only an ``Exception`` is retried: never a cancellation or a ``KeyboardInterrupt``. The three
    are evaluated in the order ``when``, ``wait``, ``stop``, as in tenacity. The constructor only
    checks its arguments; steps, runs and threads can share a policy.

    Args:
        stop: After how many attempts to give up, including the first, or a stop of tenacity.
            3 by default.
        wait: How many seconds to wait before the next attempt, or a wait of tenacity. 0 by default:
            the next attempt follows immediately (LlamaIndex Workflows waits 5 seconds by default).
        when: The exception class to retry, a tuple of such classes, or a condition of tenacity.
            Every ``Exception`` by default.

    Raises:
        WorkflowValidationError: An argument can never work; the message shows one that does.
        ModuleNotFoundError: An argument is a function, and tenacity is not installed.
    """

    stop: int | Callable[[RetryCallState], bool] = 3
    wait: float | Callable[[RetryCallState], float] = 0.0
    when: type[Exception] | tuple[type[Exception], ...] | Callable[[RetryCallState], bool] = (
        Exception
    )

    def __attrs_post_init__(self) -> None:
        for name, (is_plain, expected) in _ARGUMENTS.items():
            value = getattr(self, name)
            if _is_strategy(value):
                _check_strategy(name, value)
            elif not is_plain(value):
                raise _refusal(name, value, expected)

    def __repr__(self) -> str:
        parts = ((name, getattr(self, name)) for name in ("stop", "wait", "when"))
        return f"Retry({', '.join(f'{name}={_show(value)}' for name, value in parts)})"

    def next_delay(
        self,
        attempts: Attempts,
        *,
        seed: str,
        step: Callable[..., Any] | None = None,
        cancelled: type[BaseException] | tuple[()] = (),
    ) -> float | None:
        """Decide whether to retry after the last failure. Pure, except for the strategies.

        The random numbers that ``wait`` draws from the module ``random`` depend only on the seed
        and the attempt, so the same run waits equally long again. To do this, the state of
        ``random`` is replaced for the draw and restored; another thread that draws at this moment
        draws from the seed.

        Args:
            attempts: The attempts so far; the last one failed.
            seed: Identifies this delivery: the run's id, the step and the event's number.
            step: The value of ``fn`` in the ``RetryCallState`` of a strategy.
            cancelled: The backend's cancellation, which is ignored in a group.

        Returns:
            Seconds from now to the next attempt, or None to give up.

        Raises:
            WorkflowRuntimeError: There is no failure, or a strategy returned an invalid value.
            Exception: The exception that a strategy raised, with a note that names the strategy.
        """
        if not attempts.failures:
            msg = (
                "a retry was asked for and nothing has failed; expected attempts.failed(...) before"
            )
            raise WorkflowRuntimeError(msg)
        failure = attempts.failures[-1]
        if not matches(failure.exception, Exception, cancelled):
            return None
        stop, wait, when = cast("tuple[Any, Any, Any]", (self.stop, self.wait, self.when))
        if not any(map(_is_strategy, (stop, wait, when))):
            goes_on = attempts.count < stop and matches(failure.exception, when, cancelled)
            return float(wait) if goes_on else None
        state = self._state(attempts, step)
        if not self._is_retryable(state, counted_leaves(failure.exception, cancelled)):
            return None
        with _seeded(f"{seed}:{attempts.count}"):
            delay = self._ask("wait", state.retry_object.wait, state)
        state.upcoming_sleep = float(delay)
        return None if self._ask("stop", state.retry_object.stop, state) else float(delay)

    def _is_retryable(self, state: Any, leaves: list[BaseException]) -> bool:
        """Whether each leaf of a group, or the single exception, can be retried."""
        failed, answers = state.outcome, list[Any]()
        construct: Any = failed.construct  # a class method
        for leaf in leaves:
            state.outcome = construct(state.attempt_number, leaf, has_exception=True)
            answers.append(self._ask("when", state.retry_object.retry, state))
        state.outcome = failed
        return all(answers)

    def _state(self, attempts: Attempts, step: Callable[..., Any] | None) -> Any:
        import tenacity  # noqa: PLC0415 - an extra, imported by the strategies already

        stop, wait, when = cast("tuple[Any, Any, Any]", (self.stop, self.wait, self.when))
        policy = tenacity.Retrying(
            stop=stop if _is_strategy(stop) else tenacity.stop_after_attempt(stop),
            wait=wait if _is_strategy(wait) else tenacity.wait_fixed(wait),
            retry=when if _is_strategy(when) else tenacity.retry_if_exception_type(when),
        )
        failure = attempts.failures[-1]
        state = tenacity.RetryCallState(policy, step, (), {})
        state.attempt_number = attempts.count
        state.outcome = tenacity.Future.construct(attempts.count, failure.exception, True)
        # RetryCallState reads time.monotonic(); these are seconds on the backend's clock.
        state.start_time = 0.0
        state.outcome_timestamp = failure.at
        state.idle_for = attempts.idle
        return state

    @staticmethod
    def _ask(name: str, strategy: Any, state: Any) -> Any:
        try:
            answer = strategy(state)
        except Exception as error:
            add_note(
                error,
                f"raised by the retry strategy {name}={_show(strategy)} "
                f"after attempt {state.attempt_number}",
            )
            raise
        if inspect.iscoroutine(answer):
            answer.close()
        is_answer = _is_seconds(answer) if name == "wait" else not inspect.isawaitable(answer)
        if not is_answer:
            expected = "seconds of at least 0" if name == "wait" else "True or False at once"
            msg = (
                f"the retry strategy {name}={_show(strategy)} returned {_show_text(answer)}; "
                f"expected a plain function that returns {expected}"
            )
            raise WorkflowRuntimeError(msg)
        return answer


def _is_strategy(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_seconds(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= sys.float_info.max  # not nan, not inf, and no int that is too large


def _is_exception_class(value: object) -> bool:
    if isinstance(value, tuple):
        parts = cast("tuple[object, ...]", value)
        return bool(parts) and all(map(_is_exception_class, parts))
    return isinstance(value, type) and issubclass(value, Exception)


#: For each argument, whether a value is a plain one, and the expectation in messages.
_ARGUMENTS = {
    "stop": (
        is_count,
        (
            "a number of attempts of at least 1, `Retry(stop=3)`, or a stop of tenacity, "
            "`Retry(stop=stop_after_delay(60))`"
        ),
    ),
    "wait": (
        _is_seconds,
        (
            "seconds of at least 0, `Retry(wait=0.5)`, or a wait of tenacity, "
            "`Retry(wait=wait_exponential_jitter())`"
        ),
    ),
    "when": (
        _is_exception_class,
        (
            "a subclass of Exception or a tuple of them, `Retry(when=OSError)`, or a condition of "
            "tenacity, `Retry(when=retry_if_exception_message(match='busy'))`"
        ),
    ),
}


def _refusal(name: str, value: object, expected: str) -> WorkflowValidationError:
    shown = _show(value)
    if isinstance(value, type) and any("__call__" in vars(base) for base in value.__mro__):
        shown, expected = f"the class {shown}", f"an object of it, `Retry({name}={shown}(...))`"
    msg = f"{name} of Retry is {shown}; expected {expected}"
    return WorkflowValidationError(msg, (msg,))


def _check_strategy(name: str, strategy: Any) -> None:
    """Refuse a strategy that can never work.

    Raises:
        WorkflowValidationError: It is of the wrong kind, asynchronous, or depends on results.
        ModuleNotFoundError: tenacity is not installed.
    """
    try:
        from tenacity import retry_base, retry_if_not_result, retry_if_result  # noqa: PLC0415
        from tenacity.stop import stop_base  # noqa: PLC0415
        from tenacity.wait import wait_base  # noqa: PLC0415
    except ModuleNotFoundError as error:
        msg = (
            f"{name} of Retry is {_show(strategy)}, which is called with tenacity's RetryCallState "
            'and needs `pip install "sluicegate[retry]"`'
        )
        raise ModuleNotFoundError(msg, name="tenacity") from error

    kinds: dict[str, type] = {"stop": stop_base, "wait": wait_base, "when": retry_base}
    bases = tuple(kinds.values())
    if isinstance(strategy, bases) and not isinstance(strategy, kinds[name]):
        right = next(other for other, kind in kinds.items() if isinstance(strategy, kind))
        msg = (
            f"{name} of Retry is {_show(strategy)}, which is for another argument; "
            f"expected `Retry({right}={_show(strategy)})`"
        )
        raise WorkflowValidationError(msg, (msg,))
    for part in _parts(strategy, bases):
        if _is_async(part):
            msg = (
                f"{name} of Retry is asynchronous in {_show(part)}, but it is called between two "
                "attempts and cannot wait; expected a plain function, "
                f"`Retry({name}=lambda state: ...)`, or a strategy of tenacity itself, not of "
                "tenacity.asyncio"
            )
            raise WorkflowValidationError(msg, (msg,))
        if isinstance(part, retry_if_result | retry_if_not_result):
            msg = (
                f"when of Retry contains {_show(part)}, which never applies: the result of a step "
                "is an event, and an attempt that returns one is not retried; expected the "
                "step to raise, and `Retry(when=TheError)`"
            )
            raise WorkflowValidationError(msg, (msg,))


def _parts(strategy: Any, bases: tuple[type, ...]) -> Iterator[Any]:
    """Yield a strategy and all its parts."""
    todo: list[Any] = [strategy]
    seen: set[int] = set()
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, functools.partial):
            todo.append(cast("functools.partial[Any]", part).func)
        elif isinstance(part, bases):
            for value in cast("dict[str, Any]", vars(part)).values():
                todo += value if isinstance(value, tuple | list) else (value,)


def _is_async(part: Any) -> bool:
    if inspect.iscoroutinefunction(part):
        return True
    return _is_strategy(part) and inspect.iscoroutinefunction(type(part).__call__)


@contextmanager
def _seeded(seed: str) -> Generator[None]:
    with _drawing:
        kept = random.getstate()
        try:
            random.seed(seed.encode(errors="surrogatepass"))
            yield
        finally:
            random.setstate(kept)


#: Two threads would restore each other's states; a strategy can call another policy.
_drawing = threading.RLock()


class PastError(Exception):
    """Represents an exception of an attempt that was made before a snapshot was taken.

    Its text and its repr are the repr of that exception. It is only shown, never raised.
    """

    def __repr__(self) -> str:
        return str(self)


@attrs.frozen(eq=False)
class Failure:
    """An attempt that failed.

    Attributes:
        attempt: The number of the attempt; the first is 1.
        at: When it failed, in seconds since the first attempt began.
        exception: The exception. It keeps its traceback, and so the frames of the attempt.
    """

    attempt: int
    at: float
    exception: BaseException

    @property
    def text(self) -> str:
        """The repr of the exception on one line, shortened."""
        return _show_text(self.exception)


@attrs.frozen
class RetryInfo:
    """The attempts before this one, as returned by ``ctx.retry_info()``.

    Attributes:
        retry_number: How many attempts failed before this one: 0 in the first.
        attempt: The number of this attempt: 1 in the first.
        elapsed_seconds: Seconds since the first attempt began.
        last_exception: The exception of the previous attempt; None in the first.
        last_failed_at: When that attempt failed, in seconds since the first attempt began; None in
            the first.
        exceptions: The exceptions of all previous attempts, oldest first. Of more than 1,000
            the first and the newest 999.
    """

    retry_number: int
    attempt: int
    elapsed_seconds: float
    last_exception: BaseException | None
    last_failed_at: float | None
    exceptions: tuple[BaseException, ...]


@attrs.define(eq=False)
class Attempts:
    """The attempts at one delivery: one object from the first failure to the end.

    It reads no clock: the caller passes the time of the backend's clock. All times that it keeps
    or writes to a snapshot are seconds since the start of the first attempt; the time between a
    snapshot and the resumed run does not count.

    Attributes:
        started_at: When the first attempt began, on the backend's clock.
        failures: The attempts that failed, oldest first; at most :data:`KEPT`.
        count: How many failed, including those that are no longer kept.
        idle: Seconds spent, or about to be spent, between attempts.
    """

    started_at: float
    failures: list[Failure] = attrs.field(factory=list[Failure])
    count: int = 0
    idle: float = 0.0

    def failed(self, exception: BaseException, now: float) -> None:
        """Record that the current attempt has failed, given the backend's time."""
        self.count += 1
        self.failures.append(Failure(self.count, now - self.started_at, exception))
        if len(self.failures) > KEPT:
            del self.failures[1]

    def pause(self, delay: float) -> None:
        """Record that the next attempt comes ``delay`` seconds after the last failure."""
        self.idle += delay

    @property
    def exceptions(self) -> tuple[BaseException, ...]:
        """The exceptions, oldest first."""
        return tuple(failure.exception for failure in self.failures)

    def info(self, now: float) -> RetryInfo:
        """Return the information for the current attempt, given the backend's time."""
        last = self.failures[-1] if self.failures else None
        return RetryInfo(
            retry_number=self.count,
            attempt=self.count + 1,
            elapsed_seconds=now - self.started_at,
            last_exception=last.exception if last else None,
            last_failed_at=last.at if last else None,
            exceptions=self.exceptions,
        )

    def encode(self, now: float) -> dict[str, Any]:
        """Return plain data for a snapshot, given the backend's time.

        A snapshot contains only the repr of an exception.
        """
        return {
            "elapsed": now - self.started_at,
            "idle": self.idle,
            "count": self.count,
            "failures": [[f.attempt, f.at, f.text] for f in self.failures],
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any], now: float) -> Attempts:
        """Return the attempts from the data of :meth:`encode`, with a :exc:`PastError` for each.

        Args:
            data: The data, which can come from outside.
            now: The time on the backend's clock.

        Raises:
            ValueError: The data do not fit; the message says where.
        """
        import msgspec  # noqa: PLC0415 - only snapshots need it

        try:
            plain = msgspec.convert(data, _Encoded)
        except msgspec.ValidationError as error:
            msg = f"the attempts of a snapshot do not fit: {error}; expected what encode() made"
            raise ValueError(msg) from None
        failures = [Failure(attempt, at, PastError(text)) for attempt, at, text in plain.failures]
        return cls(now - plain.elapsed, failures, plain.count, plain.idle)


@attrs.frozen
class _Encoded:
    elapsed: float
    idle: float
    count: int
    failures: list[tuple[int, float, str]]


def note_attempts(error: BaseException, attempts: Attempts, step: str) -> None:
    """Add a note to the exception that a step ends with: its attempt, and the earlier ones.

    No note is added if there was only one attempt, or if the note is already there (an exception
    object that every attempt raises again). Of many attempts the first and the last are shown.

    Args:
        error: The exception that the run raises.
        attempts: The attempts; ``error`` is the exception of the last one.
        step: The name of the step.
    """
    if attempts.count < 2:
        return
    earlier = [f for f in attempts.failures if f.attempt != attempts.count]
    hidden = attempts.count - 1 - _SHOWN_FIRST - _SHOWN_LAST
    if hidden > 0:
        first, last = earlier[:_SHOWN_FIRST], earlier[-_SHOWN_LAST:]
        told = [*map(_tell, first), f"... {hidden} more ...", *map(_tell, last)]
    else:
        told = [_tell(failure) for failure in earlier]
    note = f"attempt {attempts.count} of the step {step}; earlier attempts: {', '.join(told)}"
    note_once(error, note)


def _tell(failure: Failure) -> str:
    return f"{failure.attempt}. {failure.text} after {failure.at:.3g} s"


def _show_text(value: object) -> str:
    """Return the repr of a value on one line, shortened, even if the repr raises."""
    text = " ".join(brief(value, sys.maxsize).split())
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def _show(value: object) -> str:
    """Return the source of an argument as the user wrote it, as far as that is known."""
    if isinstance(value, tuple):
        parts = [_show(part) for part in cast("tuple[object, ...]", value)]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if isinstance(value, type):
        return value.__name__
    if inspect.isroutine(value):
        return value.__qualname__
    if callable(value) and type(value).__module__.partition(".")[0] == "tenacity":
        return f"{type(value).__name__}(...)"
    return _show_text(value)
