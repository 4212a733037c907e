"""sweep and fuzz themselves: where they strike, what they look at, and how they leave the process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import re
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from sluicegate.testing import (
    At,
    InjectedError,
    ScenarioFailure,
    fuzz,
    run_virtually,
    sweep,
)
from sluicegate.testing._sweeps import leftovers, stage
from sluicegate.testing._sweeps.asyncio_time import workers_of
from sluicegate.testing._sweeps.trial import KINDS
from tests.helpers import BACKENDS, on_each_backend, steady_id


EVERY_KIND = [(backend, kind) for backend in BACKENDS for kind in KINDS[backend]]
on_every_kind = pytest.mark.parametrize(("backend", "kind"), EVERY_KIND)


async def one():
    await anyio.sleep(1)


async def two():
    await anyio.sleep(1)
    await anyio.sleep(1)


def outcomes_of(scenario, **options):
    """Return the outcomes of a sweep's struck runs, in order."""
    seen = []
    sweep(scenario, check=seen.append, fresh=False, **options)
    return [outcome for outcome in seen if outcome.struck]


def tell(outcome):
    """Say where an outcome was struck, without paths and lines."""
    found = re.findall(r"'([^']*)' (?:at \S+ in (\w+)|(before) its)", outcome.where)
    return [(task, function or before) for task, function, before in found]


def failure_of(scenario, call=sweep, **options):
    with pytest.raises(ScenarioFailure) as caught:
        call(scenario, **options)
    return caught.value


# -- positions ------------------------------------------------------------------------------------


@on_each_backend
def test_each_wait_is_two_positions(backend):
    """A task that waits is struck when it has blocked, and when it is about to resume."""
    struck = outcomes_of(two, backends=backend, kinds="scope")
    assert [outcome.at.position for outcome in struck] == [1, 2, 3, 4]
    assert [outcome.where.rpartition(", ")[2] for outcome in struck] == [
        "blocked",
        "about to resume",
    ] * 2
    first = two.__code__.co_firstlineno
    lines = [int(re.search(r"test_sweep\.py:(\d+) in two", o.where)[1]) for o in struck]
    assert lines == [first + 1, first + 1, first + 2, first + 2]
    assert all(tell(outcome) == [("the scenario", "two")] for outcome in struck)


@on_each_backend
@pytest.mark.parametrize("mode", ["park", "wake"])
def test_one_mode_has_half_of_them(backend, mode):
    """``modes`` chooses which moments count."""
    struck = outcomes_of(two, backends=backend, kinds="scope", modes=mode)
    assert len(struck) == 2
    ending = {"park": "blocked", "wake": "about to resume"}[mode]
    assert all(outcome.where.endswith(ending) for outcome in struck)


async def with_children():
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(one, name="first")
        nursery.start_soon(two, name="second")


@on_each_backend
def test_a_target_has_the_positions_of_its_own(backend):
    """Its moments, the one before its first step among them, and those of others while it is open."""
    struck = outcomes_of(with_children, backends=backend, kinds="scope", target="first")
    assert [tell(o)[0] for o in struck] == [
        ("first", "before"),
        ("first", "one"),
        ("first", "one"),  # when the second has blocked
        ("first", "one"),
    ]
    assert [o.where.count("; when 'second'") for o in struck] == [0, 0, 1, 0]
    assert all(o.completed and o.seconds <= 2 for o in struck)


@on_each_backend
def test_two_targets_are_struck_each_at_its_own_moments(backend):
    """A pattern may mean several tasks; each is cancelled alone, and the other continues."""

    async def child(state, seconds):
        name = "first" if seconds == 1 else "second"
        try:
            await anyio.sleep(seconds)
            state.ended.append(name)
        except anyio.get_cancelled_exc_class():
            state.hit.append(name)
            raise

    async def scenario(trial):
        trial.state.hit, trial.state.ended = [], []
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(child, trial.state, 1, name="child-1")
            nursery.start_soon(child, trial.state, 2, name="child-2")

    struck = outcomes_of(scenario, backends=backend, kinds="scope", target="child-*", modes="park")
    assert [(o.state.hit, o.state.ended) for o in struck] == [
        (["first"], ["second"]),
        (["second"], ["first"]),
    ]


@on_each_backend
def test_a_named_block_is_left_alone(backend):
    """What comes after a block that was struck by a scope runs; the block's rest does not."""

    async def scenario(trial):
        trial.state.seen = []
        with trial.target("inner"):
            await one()
            trial.state.seen.append("in it")
        await one()
        trial.state.seen.append("after it")

    struck = outcomes_of(scenario, backends=backend, kinds="scope", target="inner", modes="park")
    seen = [o.state.seen for o in struck]
    assert seen == [["after it"]]


@on_every_kind
def test_a_target_may_be_struck_in_every_way(backend, kind):
    """A task by its name, from the moment before its first step on."""

    async def patient():
        try:
            await anyio.sleep(1)
        except InjectedError:
            return

    async def scenario():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(patient, name="patient")
            await anyio.sleep(3)

    struck = outcomes_of(scenario, backends=backend, kinds=kind, target="patient")
    assert struck
    assert all("'patient'" in o.where for o in struck)
    before = [o for o in struck if tell(o)[0][1] == "before"]
    if kind == "error":  # which takes the place of an await
        assert not before
    elif backend == "trio" or kind not in {"native", "interrupt"}:
        assert len(before) == 1
    # Else it depends on AnyIO: a coroutine of its own around it cannot be thrown into before.


@on_every_kind
def test_every_kind_strikes_where_it_says(backend, kind):
    """The exception comes out of the await that ``where`` names, and is of the kind's class."""
    got = []

    async def scenario():
        await anyio.sleep(1)
        try:
            await anyio.sleep(9e7)  # beyond the deadline of kind "deadline"
        except BaseException as error:
            got.append(error)
            raise

    line = scenario.__code__.co_firstlineno + 3
    found = [
        outcome
        for outcome in outcomes_of(scenario, backends=backend, kinds=kind, modes="park")
        if f"test_sweep.py:{line} in scenario" in outcome.where
    ]
    assert len(found) == 1
    assert "'the scenario'" in found[0].where
    error = got[-1]
    expected = trio.Cancelled if backend == "trio" else asyncio.CancelledError
    if kind == "error":
        expected = InjectedError
    elif kind == "interrupt" and backend == "trio":
        expected = KeyboardInterrupt
    assert type(error) is expected
    assert found[0].cancelled is (kind != "error")
    assert found[0].error is (error if kind == "error" else None)


def test_a_deadline_is_past_all_timers_before_it():
    """Kind "deadline" lets the clock jump, so that whatever was to happen by then is due too."""

    async def scenario(trial):
        trial.state.times = []
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(one)
            try:
                await anyio.sleep(5)
            finally:
                trial.state.times.append(anyio.current_time())

    for backend in BACKENDS:
        struck = outcomes_of(scenario, backends=backend, kinds="deadline", modes="park")
        assert struck[0].state.times[0] > 1e7
        assert all(o.seconds < 10 for o in struck)


def test_the_error_may_be_chosen():
    """A class is made anew for each run; an exception is raised as it is, with nothing on it."""
    error = OSError("mine")

    async def scenario(trial):
        try:
            await two()
        except OSError as raised:
            trial.state.depth = raised.__context__
            raise

    for backend in BACKENDS:
        struck = outcomes_of(scenario, backends=backend, kinds="error", error=error)
        assert len(struck) == 2
        assert all(o.state.depth is None and o.error is error for o in struck)
    assert error.__traceback__ is None


# -- replays --------------------------------------------------------------------------------------


async def swallows(trial):
    """Keep the cancellation to itself in the second of two waits."""
    await anyio.sleep(1)
    with contextlib.suppress(BaseException):
        await anyio.sleep(1)


def finds_two(outcome):
    assert not outcome.at.again or outcome.at.again < 2


async def slow_to_go():
    try:
        await anyio.sleep(1)
    finally:
        with anyio.move_on_after(2, shield=True):
            await two()
            await two()


def loses_the_race(outcome):
    assert outcome.state.order == ["a", "b", "c"]


async def race(trial):
    trial.state.order = []

    async def child(name):
        await anyio.sleep(1)
        trial.state.order.append(name)

    async with anyio.create_task_group() as nursery:
        for name in "abc":
            nursery.start_soon(child, name)


@pytest.mark.parametrize(
    ("scenario", "call", "options"),
    [
        pytest.param(swallows, sweep, {}, id="sweep"),
        pytest.param(swallows, sweep, {"kinds": "deadline", "modes": "park", "check": lambda o: o.completed}, id="kind"),
        pytest.param(with_children, sweep, {"target": "first", "check": lambda o: not o.struck}, id="target"),
        pytest.param(slow_to_go, sweep, {"twice": True, "check": finds_two}, id="twice"),
        pytest.param(race, sweep, {"seeds": 9, "check": loses_the_race}, id="seeds"),
        pytest.param(race, fuzz, {"check": loses_the_race}, id="fuzz"),
        pytest.param(swallows, fuzz, {"cancel": True, "seeds": 30}, id="fuzz and cancel"),
    ],
)  # fmt: skip
@on_each_backend
def test_a_token_replays_the_same_run(scenario, call, options, backend):
    """The same place, the same problem and outcome; also a second time, and as an ``At``."""
    first = failure_of(scenario, call, backends=backend, **options)
    assert f"at={first.at!r})" in str(first)
    if "seeds" in options:
        options = {**options, "seeds": 1}
    for at in (first.at, At.parse(first.at)):
        again = failure_of(scenario, call, backends=backend, at=at, **options)
        assert str(again) == str(first)
        assert again.outcome.where == first.outcome.where
        assert again.outcome.seconds == first.outcome.seconds


def test_the_replay_line_names_what_decides_the_position():
    """A target, one mode, an error: without them the same number would be another moment."""
    bad = {"check": lambda outcome: not outcome.struck}
    text = str(failure_of(with_children, target="first", modes="wake", **bad))
    assert (
        "sweep(with_children, target='first', modes='wake', check=<lambda>, at='trio:scope:1')"
    ) in text
    text = str(failure_of(one, kinds="error", error=OSError, **bad))
    assert "sweep(one, error=OSError, check=<lambda>, at='trio:error:1')" in text


@on_each_backend
def test_tasks_cancelled_together_unwind_in_one_order(backend):
    """However often, or where in memory, a scenario runs; AnyIO keeps them in sets."""
    orders = set()
    junk = []

    async def scenario(trial):
        trial.state.order = []

        async def child(number):
            try:
                await anyio.sleep_forever()
            finally:
                trial.state.order.append(number)

        async with anyio.create_task_group() as nursery:
            for number in range(12):
                nursery.start_soon(child, number)
            await anyio.sleep(1)
            nursery.cancel_scope.cancel()

    def check(outcome):
        junk.append([object() for _ in range(137)])
        if len(outcome.state.order) == 12:
            orders.add((outcome.struck, tuple(outcome.state.order)))

    for _ in range(8):
        sweep(scenario, backends=backend, at=14, check=check)
    assert len(orders) == 2, orders


def test_a_number_is_a_position_of_each_kind():
    """``at=2`` runs that position once for each event loop and kind."""
    seen = []
    report = sweep(two, backends=BACKENDS, at=2, check=lambda o: seen.append(str(o.at)))
    assert [at for at in seen if at.count(":") == 2] == [
        "trio:scope:2",
        "asyncio:scope:2",
        "asyncio:native:2",
    ]
    assert report.positions == 3
    assert sweep(two, at="2").lines == ["trio:scope:2: one run"]


def test_a_position_that_does_not_exist_is_refused():
    """Nothing was run, so nothing may look as if it had passed."""
    reasons = "the scenario has no more on this event loop, with this seed, target and these modes"
    for at in (0, 99, "99", "trio:scope:99"):
        with pytest.raises(ValueError, match=re.escape(reasons)) as refused:
            sweep(one, at=at)
        shown = at if isinstance(at, str) and ":" in at else int(at)
        assert str(refused.value).startswith(
            f"at={shown!r} was not reached; expected a position up to 2"
        )
    with pytest.raises(ValueError, match="no second cancellation; expected it at one of the 1 "):
        sweep(two, at="trio:scope:3+99")


@pytest.mark.parametrize("call", [sweep, functools.partial(fuzz, cancel=True, seeds=2)])
def test_a_target_that_does_not_exist_is_refused(call):
    """A misspelt name would pass for ever; the names that there are are told."""

    async def scenario(trial):
        with trial.target("inner"):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(one, name="child")

    with pytest.raises(ValueError, match="target='chidl' matches nothing in scenario") as refused:
        call(scenario, target="chidl")
    assert str(refused.value).endswith("or a pattern; the names are 'child', 'inner'")


# -- limits ---------------------------------------------------------------------------------------


async def ten_waits():
    for _ in range(10):
        await anyio.sleep(1)


def test_beyond_the_limit_positions_are_sampled():
    """The first half of the limit is run, and a sample of the others; the report says so."""
    seen = []
    report = sweep(ten_waits, limit=8, check=lambda o: seen.append(o.at.position))
    struck = [position for position in seen if position][::1]
    assert sorted(set(struck))[:4] == [1, 2, 3, 4]
    assert len(set(struck)) == 8
    assert report.sampled
    assert str(report) == "trio, scope: 8 runs, a sample of 20 positions"
    again = []
    sweep(ten_waits, limit=8, check=lambda o: again.append(o.at.position))
    assert again == seen

    whole = sweep(ten_waits, limit=20)
    assert not whole.sampled
    assert str(whole) == "trio, scope: 20 runs, all of 20 positions"


@on_each_backend
def test_the_earliest_failing_position_is_found_from_a_sample(backend):
    """What a sample has found is looked for at the earlier positions too."""
    failure = failure_of(
        ten_waits, backends=backend, limit=6, check=lambda o: o.at.position < 7, kinds="scope"
    )
    assert failure.at == f"{backend}:scope:7"


def test_a_fuzz_that_cancels_shrinks():
    """The position is the earliest that fails, and what fails undisturbed gets an error that says so."""
    failure = failure_of(ten_waits, fuzz, cancel=True, check=lambda o: o.at.position < 3)
    assert re.fullmatch(r"trio:[a-z]+:3(@\d+)?", failure.at)
    assert failure_of(race, fuzz, cancel=True, check=loses_the_race).at.count(":") == 0


# -- arguments ------------------------------------------------------------------------------------


def plain():
    pass


async def takes_two(trial, more):
    pass


async def takes_a_keyword(*, speed):
    pass


ALL = "'scope', 'native', 'timeout', 'deadline', 'interrupt', 'error'"
TOKEN = (
    "expected a position, at=7, or what a failure printed: at='trio:scope:7', "
    "'asyncio:native:7+2@5', 'trio@5' (kinds: scope, native, timeout, deadline, interrupt, error, crash; "
    "only asyncio has 'native' and 'timeout')"
)
SEEDS = "expected a number of seeds from 1 on, or seeds from 0 on: seeds=[7]"
AT = "expected a number, at=7, or what a failure printed, at='trio:scope:7'"

WRONG = [
    (TypeError, {"scenario": plain}, f"{plain!r} is not an async function; expected async def scenario(): ..."),
    (TypeError, {"scenario": None}, "None is not an async function; expected async def scenario(): ..."),
    (TypeError, {"scenario": takes_two}, "takes_two(trial, more) requires the arguments trial, more; expected none, or one, the trial: async def scenario(trial): ..."),
    (TypeError, {"scenario": takes_a_keyword}, "takes_a_keyword(*, speed) requires the arguments speed; expected none, or one, the trial: async def scenario(trial): ..."),
    (ValueError, {"backends": "curio"}, "backends has 'curio'; expected any of 'trio', 'asyncio': backends='trio'"),
    (ValueError, {"backends": ()}, "backends=() is empty; expected any of 'trio', 'asyncio': backends='trio'"),
    (ValueError, {"kinds": "kill"}, f"kinds has 'kill'; expected any of {ALL}, 'all', 'crash': kinds='scope'"),
    (ValueError, {"kinds": []}, f"kinds=[] is empty; expected any of {ALL}, 'all', 'crash': kinds='scope'"),
    (TypeError, {"kinds": 5}, f"kinds=5; expected any of {ALL}, 'all', 'crash': kinds='scope'"),
    (ValueError, {"kinds": "native"}, "kinds has 'native', which only asyncio has; expected it with backends='asyncio', or one of 'scope', 'deadline', 'interrupt', 'error'"),
    (ValueError, {"modes": "sleep"}, "modes has 'sleep'; expected any of 'park', 'wake': modes='park'"),
    (ValueError, {"allow": "tasks"}, "allow has 'tasks'; expected any of 'task', 'thread', 'generator', 'channel', 'warning', 'swallowed': allow='task'"),
    (TypeError, {"raises": [OSError]}, f"raises={[OSError]!r}; expected a class of exceptions, or several: raises=(OSError,)"),
    (TypeError, {"raises": int}, "raises=<class 'int'>; expected a class of exceptions, or several: raises=(OSError,)"),
    (ValueError, {"seeds": 0}, f"seeds=0; {SEEDS}"),
    (ValueError, {"seeds": -1}, f"seeds=-1; {SEEDS}"),
    (ValueError, {"seeds": [3, -1]}, f"seeds=[3, -1]; {SEEDS}"),
    (TypeError, {"seeds": 1.5}, f"seeds=1.5; {SEEDS}"),
    (ValueError, {"at": "trio:native:3"}, f"at='trio:native:3' does not name a run of a scenario; {TOKEN}"),
    (ValueError, {"at": "7th"}, f"at='7th' does not name a run of a scenario; {TOKEN}"),
    (TypeError, {"at": 1.5}, f"at=1.5; {AT}"),
    (ValueError, {"at": -1}, f"at=-1; {AT}"),
    (ValueError, {"within": 0}, "within=0; expected virtual seconds above 0: within=100"),
    (ValueError, {"within": float("nan")}, "within=nan; expected virtual seconds above 0: within=100"),
    (TypeError, {"within": "1"}, "within='1'; expected virtual seconds: within=100"),
    (ValueError, {"limit": 0}, "limit=0; expected a number of runs above 0: limit=100"),
    (TypeError, {"limit": None}, "limit=None; expected a number of runs: limit=100"),
    (TypeError, {"error": 3}, "error=3; expected an exception or the class of one: error=OSError"),
    (TypeError, {"error": int}, "error=<class 'int'>; expected an exception or the class of one: error=OSError"),
    (TypeError, {"check": 3}, "check=3; expected a function of the outcome: def check(outcome): ..."),
    (TypeError, {"target": 3}, "target=3; expected a name, or a pattern of names: target='worker-*'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    WRONG,
    ids=[steady_id("{}={!r}".format(*next(iter(options.items())))) for _, options, _ in WRONG],
)
def test_what_is_wrong_with_an_argument_is_told(kind, options, message):
    """What happened, what was expected, and the corrected line; before anything runs."""
    ran = []

    async def scenario():
        ran.append(1)

    options = {"scenario": scenario, **options}
    calls = [sweep]
    if not {"kinds", "modes", "limit", "error"} & set(options):
        calls.append(fuzz)
    for call in calls:
        with pytest.raises(kind) as refused:
            call(options["scenario"], **{k: v for k, v in options.items() if k != "scenario"})
        assert str(refused.value) == message
    assert not ran


def test_a_coroutine_is_no_scenario():
    """It can run only once; it is closed, so that nothing warns of it."""
    coroutine = one()
    with pytest.raises(TypeError) as refused:
        sweep(coroutine)
    assert str(refused.value) == (
        f"{coroutine!r} is not an async function; expected the function itself, not called: "
        "one instead of one(), as in async def scenario(): ..."
    )
    assert coroutine.cr_frame is None


class Callable:
    """A scenario may be an object, a method, or a partial."""

    async def __call__(self, trial=None):
        assert trial is None
        await one()

    async def method(self, trial):
        assert trial.backend == "trio"
        await one()

    async def check(self, outcome):
        self.checked = outcome


def test_objects_methods_and_partials_are_scenarios():
    """An argument with a default is left alone; the attribute ``check`` is its check."""
    thing = Callable()
    assert sweep(thing).positions == 2
    assert thing.checked.completed or thing.checked.cancelled
    assert sweep(thing.method).positions == 2
    assert sweep(functools.partial(anyio.sleep, 1)).positions == 2


@pytest.mark.parametrize("call", [sweep, fuzz, run_virtually])
def test_a_running_event_loop_is_refused(call):
    """They start event loops of their own."""
    message = (
        f"{call.__name__}() was called inside a running event loop, and it starts its own; "
        f"expected the call in a plain function, def test_it(): {call.__name__}(...)"
    )

    async def main():
        with pytest.raises(RuntimeError) as refused:
            call(one)
        assert str(refused.value) == message

    trio.run(main)
    asyncio.run(main())


def test_a_sweep_inside_a_check_is_refused_too():
    """A check is called inside the event loop."""
    failure = failure_of(one, check=lambda outcome: sweep(one))
    assert failure.problem.startswith(
        "the check failed: RuntimeError: sweep() was called inside a running event loop"
    )


# -- what must hold -------------------------------------------------------------------------------


async def leaves_a_task():
    task = asyncio.ensure_future(asyncio.sleep(5))
    await asyncio.sleep(1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def leaves_a_system_task():
    async def forever():
        await trio.sleep_forever()

    scope = trio.CancelScope()

    async def with_scope():
        with scope:
            await forever()

    trio.lowlevel.spawn_system_task(with_scope, name="in the system")
    await trio.sleep(1)
    scope.cancel()
    await trio.sleep(1)


async def leaves_a_thread(trial):
    go = threading.Event()
    threading.Thread(target=go.wait, args=(0.1,), name="left to work").start()
    await anyio.sleep(1)
    go.set()


async def leaves_a_generator(trial):
    async def numbers():
        yield 1
        yield 2

    generator = numbers()
    trial.state.kept = generator
    await anext(generator)
    await anyio.sleep(1)
    await generator.aclose()


async def leaves_a_channel():
    send, receive = trio.open_memory_channel(1)
    await trio.sleep(1)
    send.close()
    receive.close()


async def leaves_a_warning():
    try:
        await anyio.sleep(1)
    except BaseException:
        warnings.warn("what a pity", UserWarning, stacklevel=1)
        raise


async def leaves_it_swallowed():
    with contextlib.suppress(BaseException):
        await anyio.sleep(1)


LEAVERS = [
    ("asyncio", leaves_a_task, "task", r"still running: 'Task-\d+' before its first step|still running: 'Task-\d+' at"),
    ("trio", leaves_a_system_task, "task", r"still running: 'in the system'"),
    ("trio", leaves_a_thread, "thread", "threads still working: left to work"),
    ("asyncio", leaves_a_thread, "thread", "threads still working: left to work"),
    ("trio", leaves_a_generator, "generator", r"async generators left open: leaves_a_generator\.<locals>\.numbers"),
    ("asyncio", leaves_a_generator, "generator", r"async generators left open: leaves_a_generator\.<locals>\.numbers"),
    ("trio", leaves_a_channel, "channel", "left open: 2 ends of memory channels"),
    ("trio", leaves_a_warning, "warning", "UserWarning: what a pity"),
    ("asyncio", leaves_a_warning, "warning", "UserWarning: what a pity"),
    ("trio", leaves_it_swallowed, "swallowed", "the cancellation was swallowed: it had reached 'the scenario' at"),
    ("asyncio", leaves_it_swallowed, "swallowed", "the cancellation was swallowed: it had reached 'the scenario' at"),
]  # fmt: skip


@pytest.mark.parametrize(("backend", "scenario", "allow", "problem"), LEAVERS)
def test_what_may_be_left_is_said_by_allow(monkeypatch, backend, scenario, allow, problem):
    """Each leftover is a failure, unless it is allowed; then it is none, and nothing is printed."""
    monkeypatch.setattr(leftovers, "GRACE", 0.01)
    failure = failure_of(scenario, backends=backend, modes="park")
    assert re.match(problem, failure.problem), failure.problem
    assert failure.outcome.struck
    monkeypatch.setattr(leftovers, "GRACE", 1)
    sweep(scenario, backends=backend, modes="park", allow=allow)


@on_each_backend
def test_only_what_is_documented_leaves(backend):
    """``raises`` names it, in groups too; what else leaves is the failure's cause."""
    error = OSError("broken")

    async def fails():
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            raise error from None

    async def group():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(fails)

    for scenario in (fails, group):
        failure = failure_of(scenario, backends=backend, kinds="scope")
        assert failure.problem == "OSError: broken left the scenario"
        cause = failure.__cause__
        assert (cause if scenario is fails else cause.exceptions[0]) is error
        sweep(scenario, backends=backend, kinds="scope", raises=OSError)
        sweep(scenario, backends=backend, kinds="scope", raises=(KeyError, OSError))


class Odd(BaseException):
    """Neither an Exception nor anybody else's."""


@on_each_backend
def test_an_odd_exception_is_judged_like_any_other(backend):
    """Also when the undisturbed run raises it."""

    async def scenario():
        await anyio.sleep(1)
        raise Odd

    assert failure_of(scenario, backends=backend).problem.endswith("Odd left the scenario")
    sweep(scenario, backends=backend, raises=Odd)


def fails_by_assert(outcome):
    assert not outcome.struck


def fails_by_pytest(outcome):
    if outcome.struck:
        pytest.fail("not good")


async def fails_async(outcome):
    await anyio.sleep(1000)
    assert not outcome.struck


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (fails_by_assert, "the check failed: AssertionError"),
        (fails_by_pytest, "the check failed: Failed: not good"),
        (fails_async, "the check failed: AssertionError"),
        (lambda outcome: not outcome.struck, "the check failed: it returned False"),
    ],
)
@on_each_backend
def test_a_check_may_fail_in_many_ways(backend, check, problem):
    """By an assertion, by pytest.fail(), by returning False; sync or async, at its leisure."""
    failure = failure_of(one, backends=backend, check=check)
    assert failure.problem.startswith(problem)
    assert failure.at == f"{backend}:scope:1"


def skips(outcome):
    if outcome.struck:
        pytest.skip("not today")


def exits(outcome):
    if outcome.struck:
        raise SystemExit(3)


@on_each_backend
def test_what_skips_a_test_or_ends_the_process_is_let_through(backend):
    """From a check, and out of any depth of the scenario."""
    with pytest.raises(pytest.skip.Exception, match="not today"):
        sweep(one, backends=backend, check=skips)
    with pytest.raises(SystemExit, match="3"):
        sweep(one, backends=backend, check=exits)

    async def child(error):
        await anyio.sleep(1)
        raise error

    async def scenario():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(child, SystemExit(4))

    with pytest.raises(SystemExit, match="4"):
        sweep(scenario, backends=backend)

    async def skipping():
        await anyio.sleep(1)
        pytest.skip("no such thing here")

    with pytest.raises(pytest.skip.Exception, match="no such thing here"):
        sweep(skipping, backends=backend)


@on_each_backend
def test_a_fresh_run_must_work(backend):
    """It may be left out."""
    locked = []

    async def scenario():
        assert not locked, "locked for ever"
        locked.append(1)
        await anyio.sleep(1)
        locked.clear()

    failure = failure_of(scenario, backends=backend)
    assert failure.problem == (
        "the fresh run after it failed: undisturbed, AssertionError: locked for ever\n"
        "assert not [1] left the scenario"
    ) or failure.problem.startswith("the fresh run after it failed: AssertionError: locked")
    locked.clear()

    async def again():
        locked.clear()
        await one()

    sweep(again, backends=backend, fresh=False)


@on_every_kind
def test_nothing_of_the_cancellation_is_left_for_the_fresh_run(backend, kind):
    """An interrupt that came too late is not for the next run, which no one cancels."""
    kept = []
    sweep(two, backends=backend, kinds=kind, check=kept.append)
    whole = [outcome for outcome in kept if not outcome.struck]
    assert len(whole) > 2
    assert all(outcome.completed for outcome in whole)


@pytest.mark.parametrize("kind", KINDS["asyncio"])
def test_a_fresh_run_that_is_cancelled_by_itself_does_not_work(kind):
    """What comes from a task that an earlier run has broken is no cancellation of ours."""
    broken = []

    async def scenario():
        if broken:
            broken.clear()
            raise asyncio.CancelledError
        try:
            await anyio.sleep(9e7)  # beyond the deadline of kind "deadline"
        except BaseException:
            broken.append(1)
            raise

    failure = failure_of(scenario, backends="asyncio", kinds=kind, raises=InjectedError)
    assert failure.problem.startswith("the fresh run after it failed: ")
    assert failure.problem.endswith("CancelledError left the scenario")


@on_each_backend
def test_a_long_scenario_has_steps_enough_for_its_fresh_run(backend, monkeypatch):
    """What was struck early is not given up because the whole run after it is long."""
    monkeypatch.setattr(stage, "SPIN_STEPS", 50)

    async def scenario():
        for _ in range(300):
            await anyio.lowlevel.checkpoint()

    sweep(scenario, backends=backend, at=1)


def test_exceptions_that_nobody_could_catch_are_found():
    """In finalizers, in threads (but not a thread's SystemExit), in callbacks of asyncio."""

    class Bad:
        def __del__(self):
            raise OSError("in a finalizer")

    def bad(error):
        raise error

    async def finalizer():
        Bad()
        await anyio.sleep(1)

    async def thread(error):
        worker = threading.Thread(target=bad, args=(error,))
        worker.start()
        worker.join()
        await anyio.sleep(1)

    async def callback():
        asyncio.get_running_loop().call_soon(bad, OSError("in a callback"))
        await anyio.sleep(1)

    async def task():
        child = asyncio.ensure_future(thread(SystemExit()))
        child.me = child  # collected later
        await anyio.sleep(1)
        child = asyncio.get_running_loop().create_future()
        child.set_exception(OSError("never retrieved"))
        child.me = child
        await anyio.sleep(1)

    told = "an uncatchable exception: OSError: in a "
    assert failure_of(finalizer).problem.startswith(f"{told}finalizer in <function")
    error = OSError("in a thread")
    assert failure_of(functools.partial(thread, error)).problem == f"{told}thread"
    assert sweep(functools.partial(thread, SystemExit(1))).positions == 2
    problem = failure_of(callback, backends="asyncio").problem
    assert problem.startswith(
        "the event loop's exception handler was called: Exception in callback"
    )
    problem = failure_of(task, backends="asyncio").problem
    assert "never retrieved: OSError('never retrieved')" in problem


# -- runs that do not end -------------------------------------------------------------------------


def state():
    """Return all that a sweep changes for its time, and has to put back."""
    run = trio._core._run
    return {
        "switch": run._ALLOW_DETERMINISTIC_SCHEDULING,
        "generator": run._r,
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "unraisable": sys.unraisablehook,
        "threads": threading.excepthook,
        "asyncgens": tuple(sys.get_asyncgen_hooks()),
        "frozen": gc.get_freeze_count() < 1000,
        "send": trio.MemorySendChannel.__attrs_post_init__,
        "receive": trio.MemoryReceiveChannel.__attrs_post_init__,
        "signal": signal.getsignal(signal.SIGINT),
        "wakeup": _wakeup_fd(),
        "files": sorted(_files()),
        "working": sorted(
            t.name for t in threading.enumerate() if not t.name.startswith("Trio thread")
        ),
        "loop": asyncio._get_running_loop(),
    }


def _wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def _files():
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield path.name, str(path.readlink()).partition(":")[0]


@contextlib.contextmanager
def nothing_changed(capfd=None):
    """Check that a block leaves the process as it was, and that nothing comes to light later."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("looks at /proc")
    before = state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inside = state()
        yield
        gc.collect()
        after = state()
    assert {k: v for k, v in after.items() if v != inside[k]} == {}
    assert {k: v for k, v in state().items() if v != before[k]} == {}
    assert [str(warning.message) for warning in caught] == []
    if capfd is not None:
        assert "".join(capfd.readouterr()) == ""


async def forever_shielded():
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()


async def hangs_in_a_finally():
    try:
        await anyio.sleep(1)
    except anyio.get_cancelled_exc_class():
        await forever_shielded()


async def hangs_in_a_child():
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(hangs_in_a_finally, name="stubborn")
        await anyio.to_thread.run_sync(int, "1")


async def hangs_with_a_generator():
    async def numbers():
        try:
            yield 1
        finally:
            await anyio.sleep(1)

    async for _ in numbers():
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(forever_shielded)


async def hangs_beside_an_idle_worker():
    await anyio.to_thread.run_sync(int, "1")
    while True:
        with contextlib.suppress(anyio.get_cancelled_exc_class(), RuntimeError):
            await forever_shielded()


async def deadlocks():
    lock = anyio.Lock()
    async with lock, anyio.create_task_group() as nursery:
        nursery.start_soon(lock.acquire)


async def spins():
    while True:
        try:
            await anyio.sleep(1)
            return
        except anyio.get_cancelled_exc_class():
            pass


class HangsOnce:
    """Works once, and hangs when it runs again."""

    def __init__(self):
        self.is_used = False

    async def __call__(self, trial):
        if self.is_used:
            await anyio.sleep_forever()
        self.is_used = self.is_struck(trial)
        await anyio.sleep(1)
        self.is_used = False

    def is_struck(self, trial):
        return True

    __name__ = "HangsOnce"


async def check_hangs(outcome):
    if outcome.struck:
        await anyio.sleep_forever()


HANGS = [
    (hangs_in_a_finally, {}, r"it did not end within 60 virtual seconds"),
    (hangs_in_a_finally, {"within": 0.5}, r"it did not end within 0.5 virtual seconds"),
    (hangs_in_a_child, {}, r"it did not end within 60 virtual seconds"),
    (hangs_with_a_generator, {}, r"it did not end within 60 virtual seconds"),
    (hangs_beside_an_idle_worker, {}, r"undisturbed, it did not end: no task"),
    (deadlocks, {}, r"undisturbed, it did not end: no task"),
    (spins, {}, "it keeps running while no virtual time passes"),
    (HangsOnce(), {}, r"the fresh run after it failed: it did not end: no task"),
    (one, {"check": check_hangs}, r"the check did not end: no task can ever resume"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "options", "problem"),
    HANGS,
    ids=[steady_id(f"{s.__name__}-{o}") for s, o, _ in HANGS],
)
@on_each_backend
def test_a_run_that_does_not_end_is_given_up(
    backend, scenario, options, problem, monkeypatch, capfd
):
    """It leaves no thread, no file, no hook, nothing to be warned of; a sweep after it works."""
    monkeypatch.setattr(stage, "SPIN_STEPS", 500)
    if isinstance(scenario, HangsOnce):
        scenario.is_used = False
    sweep(two, backends=backend)  # what is made once is there
    with nothing_changed(capfd):
        failure = failure_of(scenario, backends=backend, kinds="scope", **options)
        assert re.match(problem, failure.problem), failure.problem
        del failure
        assert sweep(two, backends=backend).positions >= 4


@on_each_backend
def test_who_was_alive_is_told(backend):
    """Each task that had not ended, and its await in the user's code."""
    text = str(failure_of(hangs_in_a_child, backends=backend, kinds="scope", limit=500))
    line = forever_shielded.__code__.co_firstlineno + 2
    assert re.search(
        rf"  alive    'stubborn' at \S+test_sweep\.py:{line} in forever_shielded", text
    )
    assert "  alive    'the scenario' at " in text


def test_a_spin_in_spite_of_a_native_cancel_ends_it_swallows():
    """Who waits again after a native cancellation has kept it to itself."""
    problem = failure_of(spins, backends="asyncio", kinds="native").problem
    assert problem.startswith("the cancellation was swallowed")


@pytest.mark.parametrize("kind", ["native", "timeout"])
def test_a_hang_in_a_shield_is_given_up_whatever_struck_it(kind, capfd):
    """AnyIO's shields hold out against native cancellations once these have been handled."""
    with nothing_changed(capfd):
        failure = failure_of(hangs_in_a_finally, backends="asyncio", kinds=kind)
        assert failure.problem == "it did not end within 60 virtual seconds"


@on_each_backend
def test_the_check_of_a_run_that_was_given_up_is_not_called(backend):
    """There is no outcome to be looked at; also not when the wreck is collected."""
    seen = []
    failure_of(hangs_in_a_finally, backends=backend, check=lambda o: seen.append(o.struck))
    gc.collect()
    assert seen == [False]


def test_a_generator_that_never_closes_is_given_up(capfd):
    """What is left open is closed at the end of the loop; that too may take for ever."""

    async def scenario(trial):
        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(float("inf"))

        trial.state.kept = generator = numbers()
        await anext(generator)
        await anyio.sleep(1)

    failure = failure_of(scenario, backends="asyncio")
    assert "async generators left open" in failure.problem
    failure = failure_of(scenario, backends="asyncio", allow="generator")
    assert "closing the async generators that were left did not end" in failure.problem


def test_a_worker_that_is_stuck_is_told_to_end_only_once(monkeypatch):
    """AnyIO's queue to it is short, and may be full already."""
    monkeypatch.setattr(leftovers, "GRACE", 0.01)
    monkeypatch.setattr(stage, "THREAD_PATIENCE", 0)
    monkeypatch.setattr("sluicegate.testing._sweeps.asyncio_time.PATIENCE", 0.001)
    go = threading.Event()

    async def scenario():
        asyncio.get_running_loop().call_later(1, fill)
        await anyio.to_thread.run_sync(go.wait)

    filled = []

    def fill():
        for worker in workers_of(asyncio.get_running_loop()):
            filled.append(worker)
            while not worker.queue.full():
                worker.queue.put_nowait(None)

    try:
        failure = failure_of(scenario, backends="asyncio")
        assert "did not end" in failure.problem
        assert filled
    finally:
        go.set()


@pytest.mark.slow
def test_a_thread_that_is_stuck_does_not_hold_the_sweep_up(monkeypatch):
    """asyncio's own threads cannot be given up; they are reported."""
    monkeypatch.setattr(leftovers, "GRACE", 0.01)
    go = threading.Event()
    try:
        failure = failure_of(
            functools.partial(asyncio.to_thread, go.wait), backends="asyncio", kinds="native", modes="park"
        )  # fmt: skip
        assert failure.problem == ("undisturbed, it did not end: no task can ever resume")
    finally:
        go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asyncio_"):
            thread.join()


SPINNING = """
import gc, sys, anyio
from sluicegate.testing import ScenarioFailure, sweep

async def scenario():
    has_slept = False
    while not has_slept:
        try:
            await anyio.sleep(1)
            has_slept = True
        except BaseException:
            continue

try:
    sweep(scenario, backends=sys.argv[1])
except ScenarioFailure as failure:
    print(failure.problem)
gc.collect()
"""


@pytest.mark.slow
@on_each_backend
def test_what_spins_when_it_is_closed_is_not_closed_at_the_end_of_python_either(backend):
    """A run that was given up is held for good: collecting it would not come to an end."""
    program = [sys.executable, "-c", SPINNING, backend]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("it ")  # went on and on, or did not end in its time
    assert done.stderr == ""


def test_the_hooks_of_a_later_event_loop_are_left_to_it():
    """What a run has set is put back only while it is still there."""
    hooks = sys.get_asyncgen_hooks()
    generators = leftovers.Generators()
    try:
        generators.__enter__()
        sys.set_asyncgen_hooks(print, print)  # the next event loop's
        generators.__exit__()
        assert tuple(sys.get_asyncgen_hooks()) == (print, print)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def test_the_hooks_that_a_run_passes_on_to_do_not_hold_it():
    """They are methods of its event loop; what Python returns of them is hidden from collection."""

    class Loop:
        def begins(self, generator):
            pass

    loop = Loop()
    loop.leads_to = leftovers.Generators()
    hooks = sys.get_asyncgen_hooks()
    try:
        sys.set_asyncgen_hooks(loop.begins, loop.begins)
        with loop.leads_to:
            pass
    finally:
        sys.set_asyncgen_hooks(*hooks)
    wreck = weakref.ref(loop)
    del loop
    gc.collect()
    assert wreck() is None


@on_each_backend
def test_what_ticks_for_ever_is_given_up(backend, monkeypatch):
    """A server with a heartbeat has no end by itself, and always something that can come."""
    monkeypatch.setattr(stage, "SPIN_STEPS", 100)

    async def beats():
        while True:
            await anyio.sleep(1)

    failure = failure_of(beats, backends=backend)
    assert failure.problem == "undisturbed, it keeps running while virtual time passes"
    assert "in beats: await anyio.sleep(1)" in str(failure)


# -- the way out ----------------------------------------------------------------------------------


def fails(outcome):
    assert not outcome.struck


WAYS_OUT = [
    (one, {}, None),
    (one, {"check": fails}, ScenarioFailure),
    (one, {"check": skips}, pytest.skip.Exception),
    (one, {"check": exits}, SystemExit),
    (hangs_with_a_generator, {}, ScenarioFailure),
    (one, {"target": "nobody"}, ValueError),
    (plain, {}, TypeError),
]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "options", "error"), WAYS_OUT)
@on_each_backend
def test_everything_is_put_back(backend, scenario, options, error, capfd):
    """Whatever way a sweep is left: switches, filters, hooks, handlers, files, threads."""
    sweep(two, backends=backend)
    with nothing_changed(capfd):
        if error is None:
            sweep(scenario, backends=backend, kinds="all", **options)
        else:
            with pytest.raises(error):
                sweep(scenario, backends=backend, **options)


async def interrupted_in_a_child(trial):
    async def child():
        await anyio.sleep(1)
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(1)

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(child)
        await anyio.sleep(5)


async def interrupted_when_struck(trial):
    try:
        await anyio.sleep(1)
    finally:
        if trial.state is not None and sys.exc_info()[0] is not None:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("scenario", [interrupted_in_a_child, interrupted_when_struck])
@on_each_backend
def test_a_real_interrupt_leaves_the_sweep_bare(backend, scenario, capfd):
    """Ctrl-C is the user's, in whichever run and task it comes; it is in no group."""
    sweep(two, backends=backend)
    with nothing_changed(capfd), pytest.raises(KeyboardInterrupt):
        sweep(scenario, backends=backend)


@on_every_kind
def test_a_sweep_works_in_a_thread(backend, kind):
    """Not only in the main thread; nor does an interrupt need it."""
    found = []

    def work():
        try:
            found.append(sweep(two, backends=backend, kinds=kind).positions)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [2 if kind == "error" else 4]


def test_a_heap_that_the_program_has_frozen_stays_so():
    """Who has called gc.freeze() means it."""
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        sweep(one)
        assert gc.get_freeze_count() >= frozen * 0.9
    finally:
        gc.unfreeze()


def test_what_is_returned_is_told_at_moderate_length():
    """A value whose repr is long, or fails, does not spoil the failure."""

    class Unspeakable:
        def __repr__(self):
            raise OSError

    async def scenario():
        return Unspeakable()

    assert "it returned <Unspeakable instance at" in str(
        failure_of(scenario, check=lambda o: False)
    )

    async def long():
        return "x" * 10_000

    assert len(str(failure_of(long, check=lambda o: False))) < 1000


@on_each_backend
def test_a_task_that_is_a_target_and_keeps_its_cancellation_has_swallowed_it(backend):
    """As a block of that name would have."""

    async def keeps():
        with contextlib.suppress(BaseException):
            await anyio.sleep(1)

    async def scenario():
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(keeps, name="keeper")

    kind = "scope" if backend == "trio" else "native"
    failure = failure_of(scenario, backends=backend, kinds=kind, target="keeper")
    assert failure.problem == "the cancellation was swallowed: block 'keeper' ran to its end"


def test_a_warning_that_always_comes_is_no_failure():
    """Nor one that the fresh run gives once more."""

    async def warns():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        await trio.sleep(1)

    assert sweep(warns).positions


def test_an_error_that_cannot_be_made_is_refused():
    """Before anything runs, and not in the middle of an event loop."""

    class Wanting(Exception):
        def __init__(self, *, status):
            self.status = status

    with pytest.raises(
        TypeError, match=r"error=Wanting cannot be created from a text .*error=Wanting\("
    ):
        sweep(one, kinds="error", error=Wanting)


@pytest.mark.slow
def test_time_that_passes_is_no_spin():
    """However many steps a scenario takes, if its clock moves on."""

    async def scenario():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            for _ in range(25_000):
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.001)

    sweep(scenario, at="trio:scope:1", fresh=False)


# -- several failures -----------------------------------------------------------------------------


@on_each_backend
def test_a_deadline_ends_no_shielded_clean_up(backend):
    """Kind "deadline" jumps past no time limit of a shielded clean-up that awaits and is on time."""

    async def scenario(trial):
        trial.state.late = []
        try:
            await anyio.sleep(1)
        finally:
            for inner in (False, True):
                with anyio.CancelScope(shield=True) as outer:
                    if not inner:
                        outer.deadline = anyio.current_time() + 5
                    with anyio.move_on_after(5 if inner else 100) as limit:
                        await anyio.lowlevel.checkpoint()
                        await anyio.sleep(1)
                trial.state.late.append(outer.cancelled_caught or limit.cancelled_caught)

    for outcome in outcomes_of(scenario, backends=backend, kinds="deadline"):
        assert not any(outcome.state.late)


@on_each_backend
def test_a_deadline_still_finds_clean_up_that_takes_too_long(backend):
    """A clean-up that exceeds its own limit is found as before."""

    async def scenario():
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(5):
                await anyio.sleep(6)

    failure = failure_of(scenario, backends=backend, kinds="deadline")
    assert "undisturbed, TimeoutError" in failure.problem or "TooSlowError" in failure.problem


def test_each_task_that_is_left_has_a_line():
    """Of tasks that still run, a failure tells in a line for each."""

    async def scenario():
        for n in range(3):
            task = asyncio.create_task(asyncio.sleep(100), name=f"left {n}")
            _kept.append(task)
        await asyncio.sleep(0)

    problem = failure_of(scenario, backends="asyncio").problem
    _kept.clear()
    first, *lines = problem.splitlines()

    assert first == "still running:"
    assert [line.partition(" at ")[0] for line in lines] == [f"    'left {n}'" for n in range(3)]


_kept = []


@on_each_backend
def test_a_sweep_may_continue_past_the_first_failure(backend):
    """With keep_going all runs are done; the failure counts those that failed, by what is wrong."""

    async def scenario():
        for _ in range(4):
            try:
                await anyio.sleep(1)
            except BaseException:
                raise ValueError("first") from None

    first = failure_of(scenario, backends=backend, kinds="scope")
    failure = failure_of(scenario, backends=backend, kinds="scope", keep_going=True)

    assert first.failed == (f"{backend}:scope:1",)
    assert failure.at == first.at
    assert str(failure).startswith(str(first))
    count = len(failure.failed)
    assert failure.failed == tuple(f"{backend}:scope:{n}" for n in range(1, count + 1))
    assert count > 5
    assert re.search(
        rf"\n{count} of \d+ runs failed:\n  {count} x ValueError: first left the scenario "
        rf"\(first: {first.at}\)$",
        str(failure),
    )


@on_each_backend
def test_an_undisturbed_run_that_fails_is_counted_once(backend):
    """What does not work by itself is not cancelled as well, and the other seeds are run."""

    async def scenario():
        await anyio.sleep(1)
        raise ValueError("always")

    for call, count in ((sweep, 3), (fuzz, 3)):
        failure = failure_of(scenario, call, backends=backend, seeds=3, keep_going=True)
        assert len(failure.failed) == count
        assert "3 of 3 runs failed" in str(failure)


def test_a_fuzz_may_continue_past_the_first_failure():
    """The same for a fuzz: each seed counts."""

    async def scenario():
        order = []

        async def note(n):
            order.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(2):
                nursery.start_soon(note, n)
        assert order == [0, 1]

    failure = failure_of(scenario, fuzz, seeds=20, keep_going=True)

    assert 1 < len(failure.failed) < 20
    assert f"{len(failure.failed)} of 20 runs failed:" in str(failure)


def test_a_sweep_that_continues_and_finds_nothing_passes():
    """keep_going changes nothing about a scenario that works."""
    assert sweep(two, keep_going=True).positions == sweep(two).positions
