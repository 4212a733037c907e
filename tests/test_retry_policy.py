"""The policy of retries: which failure is tried again, after how long, and what is kept of it."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import threading
from datetime import timedelta

import attrs
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    retry_if_exception,
    retry_if_exception_cause_type,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_if_result,
    retry_never,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    stop_when_event_set,
    wait_chain,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

from sluicegate._definition.retries import (
    KEPT,
    Attempts,
    PastError,
    Retry,
    RetryInfo,
    note_attempts,
)
from sluicegate._errors import WorkflowRuntimeError, WorkflowValidationError
from tests.helpers import steady_id


def tried(*times, error=None, started_at=0.0):
    """Return attempts that failed at these times on the backend's clock."""
    attempts = Attempts(started_at)
    for now in times:
        attempts.failed(error or OSError("down"), now)
    return attempts


def delay(policy, attempts, seed="seed"):
    return policy.next_delay(attempts, seed=seed)


def delays(policy, *, seed="seed", error=None):
    """Return all delays until the policy gives up, with failures at once after each delay."""
    attempts, now, found = Attempts(0.0), 0.0, []
    while len(found) < 20:
        attempts.failed(error or OSError("down"), now)
        pause = policy.next_delay(attempts, seed=seed)
        if pause is None:
            break
        attempts.pause(pause)
        found.append(pause)
        now += pause
    return found


# -- plain values ---------------------------------------------------------------------------------


def test_defaults_are_three_attempts_at_once_after_any_exception():
    """Without arguments: three attempts, no wait between them, whatever Exception it was."""
    assert delays(Retry(), error=ZeroDivisionError()) == [0.0, 0.0]


def test_plain_values():
    """An int stops, a number waits, and classes choose, without tenacity."""
    policy = Retry(stop=4, wait=2, when=(OSError, KeyError))

    assert delays(policy) == [2.0, 2.0, 2.0]
    assert delays(policy, error=KeyError()) == [2.0, 2.0, 2.0]
    assert delays(policy, error=FileNotFoundError()) == [2.0, 2.0, 2.0]
    assert delays(policy, error=ValueError()) == []
    assert delays(Retry(stop=1)) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), BaseException()])
def test_what_is_no_exception_is_never_tried_again(error):
    """Whatever a condition says, what is no Exception (a cancellation, Ctrl-C) ends the step."""
    assert delay(Retry(), tried(1.0, error=error)) is None
    assert delay(Retry(when=lambda _: True), tried(1.0, error=error)) is None


def test_a_policy_is_a_value():
    """A policy is frozen, compares by its arguments, and its repr is what was written."""
    policy = Retry(stop=5, wait=0.5, when=OSError)

    assert policy == Retry(stop=5, wait=0.5, when=OSError)
    assert hash(policy) == hash(Retry(stop=5, wait=0.5, when=OSError))
    assert repr(policy) == "Retry(stop=5, wait=0.5, when=OSError)"
    assert repr(Retry(when=(OSError, KeyError))) == (
        "Retry(stop=3, wait=0.0, when=(OSError, KeyError))"
    )
    assert repr(Retry(stop=stop_never, wait=wait_none(), when=(OSError,))) == (
        "Retry(stop=_stop_never(...), wait=wait_none(...), when=(OSError,))"
    )
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        policy.stop = 6


# -- tenacity -------------------------------------------------------------------------------------


def test_each_argument_may_be_of_tenacity_alone():
    """Plain values and objects of tenacity mix."""
    assert delays(Retry(stop=stop_after_attempt(3), wait=1)) == [1.0, 1.0]
    assert delays(Retry(stop=3, wait=wait_fixed(timedelta(seconds=2)))) == [2.0, 2.0]
    assert delays(Retry(when=retry_if_exception_type(OSError))) == [0.0, 0.0]
    assert delays(Retry(when=retry_if_exception_type(KeyError))) == []


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (wait_exponential(multiplier=1, max=4), [1.0, 2.0, 4.0, 4.0]),
        (wait_incrementing(start=1, increment=2), [1.0, 3.0, 5.0, 7.0]),
        (wait_chain(wait_fixed(3), wait_fixed(1)), [3.0, 1.0, 1.0, 1.0]),
        (wait_fixed(1) + wait_incrementing(start=0, increment=1), [1.0, 2.0, 3.0, 4.0]),
        (sum([wait_fixed(1), wait_fixed(2)]), [3.0] * 4),
        (lambda state: state.attempt_number / 2, [0.5, 1.0, 1.5, 2.0]),
        (lambda state: state.idle_for + 1, [1.0, 2.0, 4.0, 8.0]),
    ],
    ids=["exponential", "incrementing", "chain", "plus", "sum", "function", "idle_for"],
)
def test_waits(wait, expected):
    """The waits of tenacity see the number of the attempt, and what was waited so far."""
    assert delays(Retry(stop=5, wait=wait)) == expected


def test_conditions_see_the_exception():
    """The conditions of tenacity and their combinations are asked about the exception itself."""
    caused = OSError("down")
    caused.__cause__ = KeyError()
    conditions = {
        retry_if_exception_message(message="down"): True,
        retry_if_exception_message(match="up"): False,
        retry_if_exception_cause_type(KeyError): True,
        retry_if_exception_type(KeyError) | retry_if_exception_message(match="do"): True,
        retry_if_exception_type(OSError) & retry_if_not_exception_type(OSError): False,
        retry_if_exception(lambda error: error is caused): True,
        retry_if_exception(lambda error: error is not caused): False,
        retry_never: False,
    }

    for condition, expected in conditions.items():
        answer = delay(Retry(when=condition), tried(1.0, error=caused))
        assert (answer is not None) == expected, condition


def test_stops_count_from_the_start_of_the_first_attempt():
    """``stop_after_delay`` reads the times given, on whatever clock, and not the real one."""
    policy = Retry(stop=stop_after_delay(10), wait=1)

    assert delay(policy, tried(1000.0, 1009.9, started_at=1000.0)) == 1.0
    assert delay(policy, tried(1000.0, 1010.0, started_at=1000.0)) is None


def test_stops_see_the_wait_to_come():
    """``stop_before_delay`` counts the wait that would follow."""
    policy = Retry(stop=stop_before_delay(10), wait=3)

    assert delay(policy, tried(6.9)) == 3.0
    assert delay(policy, tried(7.0)) is None


def test_stops_combine():
    """``|`` and ``&`` of stops work, and an event that is set stops."""
    event = threading.Event()

    assert len(delays(Retry(stop=stop_after_attempt(3) | stop_after_delay(60), wait=1))) == 2
    assert len(delays(Retry(stop=stop_after_attempt(3) & stop_after_delay(5), wait=1))) == 5
    assert delay(Retry(stop=stop_when_event_set(event)), tried(1.0)) == 0.0
    event.set()
    assert delay(Retry(stop=stop_when_event_set(event)), tried(1.0)) is None


def test_a_function_sees_the_whole_state():
    """A function gets tenacity's own state: the step, the attempt, the outcome, the times."""
    seen = []
    error = OSError("down")
    attempts = tried(101.0, error=error, started_at=100.0)
    attempts.pause(0.25)
    attempts.failed(error, 102.0)

    def step():
        pass

    def stop(state):
        seen.append(state)
        return False

    policy = Retry(stop=stop, wait=0.5, when=retry_if_exception_type(OSError))
    assert policy.next_delay(attempts, seed="", step=step) == 0.5

    (state,) = seen
    assert isinstance(state, tenacity.RetryCallState)
    assert state.fn is step
    assert (state.args, state.kwargs) == ((), {})
    assert state.attempt_number == state.outcome.attempt_number == 2
    assert state.outcome.failed
    assert state.outcome.exception() is error
    assert state.seconds_since_start == 2.0
    assert state.idle_for == 0.25
    assert state.upcoming_sleep == 0.5
    assert state.retry_object.stop is stop
    assert state.retry_object.wait(state) == 0.5


def test_the_order_of_questions():
    """The condition is asked first; what it refuses asks nothing else. The stop is asked last."""
    asked = []

    def ask(name, answer):
        def strategy(state):
            asked.append(name)
            return answer

        return strategy

    refuses = Retry(stop=ask("stop", False), wait=ask("wait", 1), when=ask("when", False))
    assert delay(refuses, tried(1.0)) is None
    assert asked == ["when"]

    asked.clear()
    stops = Retry(stop=ask("stop", True), wait=ask("wait", 1), when=ask("when", True))
    assert delay(stops, tried(1.0)) is None
    assert asked == ["when", "wait", "stop"]


# -- chance ---------------------------------------------------------------------------------------

JITTERS = [wait_random(0, 10), wait_random_exponential(max=60), wait_exponential_jitter(max=99)]


@pytest.mark.parametrize("wait", JITTERS, ids=lambda wait: type(wait).__name__)
def test_same_seed_same_delays(wait):
    """Jitter depends on the seed and the attempt alone, not on who drew before."""
    policy = Retry(stop=6, wait=wait)
    first = delays(policy, seed="run 1 / ask")
    random.random()

    assert delays(policy, seed="run 1 / ask") == first
    assert delays(policy, seed="run 2 / ask") != first
    assert len(set(first)) == 5


@given(st.text(st.characters()))
def test_any_text_is_a_seed(seed):
    """A seed is any text, also one that no encoding of the outside takes."""
    policy = Retry(wait=wait_random())

    assert delays(policy, seed=seed) == delays(policy, seed=seed)


def test_the_program_draws_as_if_nobody_had_drawn_between():
    """The state of ``random`` is put back, also where a strategy raises."""

    def wait(state):
        random.random()
        raise KeyError

    random.seed(1)
    expected = [random.random() for _ in range(3)]
    random.seed(1)
    found = [random.random()]
    delay(Retry(wait=wait_random()), tried(1.0))
    found.append(random.random())
    with pytest.raises(KeyError):
        delay(Retry(wait=wait), tried(1.0))
    found.append(random.random())

    assert found == expected


# -- strategies that do wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop", "wait", "when"])
def test_what_a_strategy_raises_comes_out_as_it_is(name):
    """The error of a strategy is not replaced; a note says which strategy raised it."""
    error = ZeroDivisionError("mine")

    def broken(state):
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        delay(Retry(**{name: broken}), tried(1.0, 2.0))

    assert caught.value is error
    (note,) = error.__notes__
    assert note.startswith(f"raised by the retry strategy {name}=")
    assert "broken" in note
    assert note.endswith("after attempt 2")


@pytest.mark.parametrize("answer", [-1, float("nan"), float("inf"), None, "1", True, 10**400])
def test_a_wait_that_is_no_time_is_refused(answer):
    """What a wait returns has to be seconds; the error names the strategy and the answer."""
    with pytest.raises(WorkflowRuntimeError, match=r"retry strategy wait=.*seconds of at least 0"):
        delay(Retry(wait=lambda _: answer), tried(1.0))


@pytest.mark.parametrize("name", ["stop", "wait", "when"])
def test_a_coroutine_is_no_answer(name):
    """An async function in disguise is told at the first use, and its coroutine is closed."""

    async def ask(state):
        return True

    with pytest.raises(WorkflowRuntimeError, match=f"retry strategy {name}=.*coroutine"):
        delay(Retry(**{name: lambda state: ask(state)}), tried(1.0))


def test_nothing_failed():
    """A policy that is asked before anything failed says so."""
    with pytest.raises(WorkflowRuntimeError, match="nothing has failed"):
        delay(Retry(), Attempts(0.0))


# -- arguments ------------------------------------------------------------------------------------


async def async_function(state):
    return True


class AsyncStrategy:
    async def __call__(self, state):
        return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop": 0}, "stop of Retry is 0; expected a number of attempts of at least 1"),
        ({"stop": True}, "stop of Retry is True"),
        ({"stop": 1.5}, "`Retry(stop=3)`"),
        ({"stop": None}, "stop of Retry is None"),
        ({"stop": int}, "stop of Retry is int; expected a number"),
        ({"stop": stop_after_attempt}, "expected an object of it, `Retry(stop=stop_after_attempt("),
        ({"stop": wait_fixed(1)}, "expected `Retry(wait=wait_fixed(...))`"),
        ({"wait": -1}, "wait of Retry is -1; expected seconds of at least 0, `Retry(wait=0.5)`"),
        ({"wait": float("nan")}, "wait of Retry is nan"),
        ({"wait": float("inf")}, "wait of Retry is inf"),
        ({"wait": False}, "wait of Retry is False"),
        ({"wait": "1"}, "wait of Retry is '1'"),
        ({"wait": wait_fixed}, "the class wait_fixed; expected an object"),
        ({"wait": stop_after_delay(1)}, "expected `Retry(stop=stop_after_delay(...))`"),
        ({"when": retry_if_exception_type}, "`Retry(when=retry_if_exception_type(...))`"),
        ({"when": stop_never}, "expected `Retry(stop=_stop_never(...))`"),
        ({"when": KeyboardInterrupt}, "when of Retry is KeyboardInterrupt; expected a subclass of"),
        ({"when": (OSError, BaseException)}, "when of Retry is (OSError, BaseException)"),
        ({"when": ()}, "when of Retry is ()"),
        ({"when": OSError("x")}, "when of Retry is OSError('x')"),
        ({"when": [OSError]}, "a tuple of them, `Retry(when=OSError)`"),
        ({"when": retry_if_result(bool)}, "contains retry_if_result(...), which never applies"),
        ({"when": tenacity.retry_if_not_result(bool)}, "the result of a step is an event"),
        (
            {"when": retry_if_exception_type(OSError) | retry_if_result(bool)},
            "contains retry_if_result(...)",
        ),
        ({"stop": async_function}, "stop of Retry is asynchronous in async_function"),
        ({"wait": functools.partial(async_function, 1)}, "wait of Retry is asynchronous"),
        ({"wait": functools.partial(functools.partial(AsyncStrategy()))}, "is asynchronous in"),
        ({"when": AsyncStrategy()}, "expected a plain function, `Retry(when=lambda state: ...)`"),
        (
            {"when": tenacity.asyncio.retry_if_exception(async_function)},
            "not of tenacity.asyncio",
        ),
        (
            {"when": retry_never | (retry_if_exception(async_function) & retry_never)},
            "asynchronous in async_function",
        ),
        ({"wait": wait_fixed(1) + wait_chain(wait_none(), async_function)}, "is asynchronous"),
    ],
    ids=steady_id,
)
def test_bad_arguments(arguments, message):
    """P13: what can never work is refused when the policy is made, with the line that works."""
    with pytest.raises(WorkflowValidationError) as caught:
        Retry(**arguments)

    assert message in str(caught.value)
    assert caught.value.problems == (str(caught.value),)


# -- without tenacity -----------------------------------------------------------------------------


def run_without_tenacity(code):
    code = f"import sys; sys.modules['tenacity'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.stdout.strip()


def test_plain_values_need_no_tenacity():
    """Where tenacity is not installed, plain values work."""
    printed = run_without_tenacity(
        "from sluicegate._definition.retries import Attempts, Retry\n"
        "attempts = Attempts(0.0)\n"
        "attempts.failed(OSError(), 1.0)\n"
        "print(Retry(stop=2, wait=0.5, when=OSError).next_delay(attempts, seed=''))"
    )

    assert printed == "0.5"


def test_a_missing_tenacity_is_named_when_it_is_needed():
    """A function without tenacity is refused when the policy is made; the message names the extra."""
    printed = run_without_tenacity(
        "from sluicegate._definition.retries import Retry\n"
        "try: Retry(when=lambda state: True)\n"
        "except ModuleNotFoundError as error: print(error.name, error)"
    )

    assert printed.startswith("tenacity when of Retry is ")
    assert 'pip install "sluicegate[retry]"' in printed


def test_importing_does_not_import_tenacity():
    """P20: tenacity is imported by those who use it only."""
    code = "import sys, sluicegate._definition.retries; print('tenacity' in sys.modules, 'msgspec' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert printed.split() == ["False", "False"]


# -- what is kept ---------------------------------------------------------------------------------


def test_info_of_the_first_attempt():
    """In the first attempt nothing has failed."""
    assert Attempts(100.0).info(101.5) == RetryInfo(
        retry_number=0,
        attempt=1,
        elapsed_seconds=1.5,
        last_exception=None,
        last_failed_at=None,
        exceptions=(),
    )


def test_info_of_a_later_attempt():
    """A later attempt sees every failure so far, the exceptions themselves, and when it was."""
    first, second = OSError("a"), KeyError("b")
    attempts = Attempts(100.0)
    attempts.failed(first, 101.0)
    attempts.failed(second, 103.0)
    info = attempts.info(104.0)

    assert (info.retry_number, info.attempt) == (2, 3)
    assert info.elapsed_seconds == 4.0
    assert info.last_exception is second
    assert info.last_failed_at == 3.0
    assert len(info.exceptions) == 2
    assert info.exceptions[0] is first
    assert info.exceptions[1] is second
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        info.attempt = 1


def test_a_snapshot_goes_through_json_and_counts_on():
    """Attempts come back from a snapshot on another clock: same counts, same times, same texts."""
    attempts = tried(1001.0, 1002.0, started_at=1000.0)
    attempts.pause(0.5)
    data = json.loads(json.dumps(attempts.encode(1004.0)))
    again = Attempts.decode(data, 7.0)

    assert again.encode(7.0) == attempts.encode(1004.0)
    assert again.info(8.0).elapsed_seconds == 5.0
    assert again.info(8.0).last_failed_at == 2.0
    assert [repr(error) for error in again.exceptions] == ["OSError('down')"] * 2
    assert all(type(error) is PastError for error in again.exceptions)

    again.failed(OSError("again"), 9.0)
    assert again.failures[-1].attempt == 3
    assert again.failures[-1].at == 6.0
    assert delay(Retry(stop=4), again) == 0.0
    assert delay(Retry(stop=stop_after_delay(6)), again) is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"elapsed": "long"}, "$.elapsed"),
        ({"count": 1.5}, "$.count"),
        ({"failures": [[1, "soon", "x"]]}, "$.failures[0][1]"),
        ({"failures": [[1, 2.0]]}, "$.failures[0]"),
    ],
)
def test_a_broken_snapshot_is_refused(change, path):
    """P19: data that do not fit are refused; the message points at the place."""
    with pytest.raises(ValueError, match="the attempts of a snapshot do not fit") as caught:
        Attempts.decode(tried(1.0).encode(2.0) | change, 0.0)

    assert path in str(caught.value)


def test_memory_of_endless_attempts_is_bounded():
    """P16: of more than a thousand failures the first and the newest are kept; all are counted."""
    attempts = tried(*range(KEPT + 500))

    assert attempts.count == KEPT + 500
    assert len(attempts.failures) == KEPT
    assert [failure.attempt for failure in attempts.failures[:2]] == [1, 502]
    assert attempts.failures[-1].attempt == KEPT + 500


# -- notes ----------------------------------------------------------------------------------------


def test_the_last_failure_tells_of_the_others():
    """The exception that ends the step has one note: its attempt, and the failures before it."""
    attempts = tried(0.1, 1.25)
    error = KeyError("last")
    attempts.failed(error, 3.0)
    note_attempts(error, attempts, "ask")
    note_attempts(error, attempts, "ask")

    (note,) = error.__notes__
    assert note == (
        "attempt 3 of the step ask; earlier attempts: "
        "1. OSError('down') after 0.1 s, 2. OSError('down') after 1.25 s"
    )
    assert error.__cause__ is None
    assert error.__context__ is None
    assert not hasattr(attempts.failures[0].exception, "__notes__")


def test_one_attempt_needs_no_note():
    """What failed once, without a retry, has no note."""
    error = OSError()
    note_attempts(error, tried(1.0, error=error), "ask")

    assert not hasattr(error, "__notes__")


class Rude(Exception):
    def __repr__(self):
        msg = "no"
        raise ValueError(msg)


@pytest.mark.parametrize("count", [9, 10, 1000, 3000])
def test_the_note_stays_short(count):
    """Of many attempts the note tells the first three and the last five; a text is cut."""
    attempts = tried(*range(count), error=OSError("x" * 5000))
    error = attempts.failures[-1].exception
    note_attempts(error, attempts, "ask")
    (note,) = error.__notes__

    assert len(note) < 2500
    assert f"attempt {count} of" in note
    assert "1. OSError('xxx" in note
    assert f", {count - 1}. OSError('xxx" in note
    assert f", {count}. " not in note
    assert (f"... {count - 9} more ..." in note) == (count > 9)


def test_a_repr_that_raises_does_not_replace_the_failure():
    """An exception that cannot be shown is told by its class; a text of lines becomes one line."""
    attempts = tried(1.0, error=Rude())

    class Tall(Exception):
        def __repr__(self):
            return "a\n  b"

    attempts.failed(Tall(), 2.0)
    error = OSError()
    attempts.failed(error, 3.0)
    note_attempts(error, attempts, "ask")

    assert (
        "1. <Rude whose repr raises ValueError> after 1 s, 2. a b after 2 s" in (error.__notes__[0])
    )
    assert attempts.encode(4.0)["failures"][0][2] == "<Rude whose repr raises ValueError>"
