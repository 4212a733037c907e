"""A durable run outlives its process: what leaves its owner when its part in this process ends.

The runs here are durable in name only (``outcome.is_durable``), which is all that the rules look at:
what a store does with such a run is tested with the stores.
"""

from __future__ import annotations

import gc

import anyio
import pytest
import trio

from sluicegate import (
    StopEvent,
    WorkflowCancelledError,
    WorkflowCancelledEvent,
    WorkflowDetachedError,
    WorkflowDetachedEvent,
    workflow_scope,
)
from sluicegate._engine.ending import detach_run
from sluicegate._engine.outcome import OUTSIDE, Outcome
from sluicegate._handler import run_of
from sluicegate.recording import Recorder
from tests.helpers import (
    Catch,
    Done,
    Fan,
    Mine,
    One,
    Single,
    nothing_left,
    on_each_backend,
    own_run,
    run_virtually,
)


FORMS = ("in place", "block", "scope", "nursery")
on_each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _collects_garbage():
    """Collect what a test leaves behind within that test, so that its warnings are its own."""
    yield
    gc.collect()


def durable(workflow, **fields):
    """Return the handler of a run that counts as durable."""
    handler = workflow.run(run_id="r-1", **fields)
    run_of(handler).outcome.is_durable = True
    return handler


class Steps:
    """The work of three steps that wait for ever, with a clean-up that takes a second."""

    def __init__(self, cleanup=None):
        self.cleanup = cleanup
        self.began = 0
        self.cleaned = 0
        self.all_here = anyio.Event()

    async def __call__(self, ctx, number):
        self.began += 1
        if self.began == 3:
            self.all_here.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            self.cleaned += 1
            if self.cleanup is not None and number == 0:
                raise self.cleanup


async def events_of(handler):
    with handler.stream_events() as stream:
        return [event async for event in stream]


# -- who detaches ------------------------------------------------------------------------------------


@on_each_backend
@on_each_form
def test_cancelling_a_scope_around_the_owner_detaches_a_durable_run(backend, form):
    """D5: it unwinds and ends here, and it was not cancelled."""

    async def main():
        steps = Steps()
        handler = durable(Fan(steps))
        with nothing_left(), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel():
                    await steps.all_here.wait()
                    scope.cancel()

                tasks.start_soon(cancel)
                await own_run(form, handler)

        assert scope.cancelled_caught
        assert steps.cleaned == 3
        assert handler.status == "detached"
        assert handler.is_done()
        assert handler.stop_event is None
        (last,) = await events_of(handler)
        assert type(last) is WorkflowDetachedEvent
        # Whichever came first: the task of the run, or the exit of its owner.
        assert last.reason == OUTSIDE or "left by" in last.reason
        assert handler.exceptions == ()
        with pytest.raises(WorkflowDetachedError):
            await handler

    run_virtually(backend, main)


@on_each_backend
def test_leaving_the_block_by_an_exception_detaches_a_durable_run(backend):
    """D5: only ``handler.cancel()`` is a cancellation."""

    async def main():
        error = Mine()
        steps = Steps()
        handler = durable(Fan(steps))
        with Catch() as left:
            async with handler:
                await steps.all_here.wait()
                raise error

        assert left.error is error
        assert handler.status == "detached"
        assert "its block was left by Mine" in str(run_of(handler).outcome.error)

    run_virtually(backend, main)


@on_each_backend
@pytest.mark.parametrize("how", ["an exception", "scope.cancel()"])
def test_what_a_scope_ends_is_the_part_in_this_process(backend, how):
    """D5: a server that shuts down does not cancel the runs that its store keeps."""

    async def main():
        steps = Steps()
        handler = durable(Fan(steps))
        with Catch() as left:
            async with workflow_scope() as scope:
                handler.start_soon(scope)
                await steps.all_here.wait()
                if how == "scope.cancel()":
                    scope.cancel("the server stops")
                else:
                    raise Mine

        assert handler.status == "detached"
        assert type(left.error) is (Mine if how == "an exception" else type(None))

    run_virtually(backend, main)


@on_each_backend
def test_run_whose_task_never_began_is_detached(backend):
    """D5: a durable run that was cancelled before its first step is not lost."""

    async def main():
        handler = durable(One())
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with handler:
                pass

        assert handler.status == "detached"
        with anyio.CancelScope() as scope:
            scope.cancel()
            plain = One().run()
            async with plain:
                pass

        assert plain.status == "cancelled"

    run_virtually(backend, main)


@on_each_backend
def test_cancelling_the_handler_cancels_a_durable_run(backend):
    """D5: that ends the run itself, wherever it continues."""

    async def main():
        steps = Steps()
        async with durable(Fan(steps)) as handler:
            await steps.all_here.wait()
            await handler.cancel("enough")

        assert handler.status == "cancelled"
        assert type((await events_of(handler))[-1]) is WorkflowCancelledEvent
        with pytest.raises(WorkflowCancelledError, match="enough"):
            await handler

    run_virtually(backend, main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@on_each_backend
def test_urgent_exception_leaves_bare_and_detaches(backend, kind):
    """D5: Ctrl-C in a step ends the process, and is no failure of a durable run."""
    handlers = []

    async def main():
        async def work(ctx):
            raise kind

        handler = durable(Single(work))
        handlers.append(handler)
        await handler

    with pytest.raises(kind):
        run_virtually(backend, main)
    (handler,) = handlers
    assert handler.status == "detached"
    assert run_of(handler).outcome.reason == f"{kind.__name__} was raised"
    assert type(run_of(handler).log._events[-1]) is WorkflowDetachedEvent


@on_each_backend
def test_failure_of_a_step_fails_a_durable_run(backend):
    """A step's own failure is the run's, and is recorded."""

    async def main():
        error = Mine()

        async def work(ctx):
            raise error

        handler = durable(Single(work))
        with Catch() as left:
            await handler

        assert left.error is error
        assert handler.status == "failed"

    run_virtually(backend, main)


# -- what is raised ----------------------------------------------------------------------------------


@on_each_backend
@on_each_form
def test_lost_lease_is_raised_if_nobody_observed_it(backend, form):
    """D4: the stale owner's scope is cancelled, and says so; the cause is the store's error."""

    async def main():
        cause = OSError("the lease is another's")
        steps = Steps()
        handler = durable(Fan(steps))

        async def lose():
            await steps.all_here.wait()
            detach_run(run_of(handler), "its lease was lost", cause)

        with nothing_left(), Catch() as left:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lose)
                if form == "block":
                    async with handler:
                        pass
                elif form == "scope":
                    async with workflow_scope() as scope:
                        handler.start_soon(scope)
                elif form == "nursery":
                    async with anyio.create_task_group() as nursery:
                        handler.start_soon(nursery)
                else:
                    await handler

        error = left.one
        assert type(error) is WorkflowDetachedError
        assert error.__cause__ is cause
        assert error.run_id == "r-1"
        assert error.reason == "its lease was lost"
        assert "runs.attach('r-1')" in str(error)
        assert handler.exceptions == (error,)
        assert handler.status == "detached"
        assert steps.cleaned == 3

    run_virtually(backend, main)


@on_each_backend
def test_observed_detachment_is_not_raised_again(backend):
    """P9: who has awaited the handler has seen it."""

    async def main():
        steps = Steps()
        async with durable(Fan(steps)) as handler:
            await steps.all_here.wait()
            detach_run(run_of(handler), "its lease was lost", OSError())
            with pytest.raises(WorkflowDetachedError) as raised:
                await handler

        assert raised.value is run_of(handler).outcome.error

    run_virtually(backend, main)


@on_each_backend
def test_scope_that_is_cancelled_after_a_lost_lease_leaves_alone(backend):
    """The cancellation of the caller is what leaves; the handler still tells of the lease."""

    async def main():
        steps = Steps()
        handler = durable(Fan(steps))
        with nothing_left(), anyio.CancelScope() as scope:
            async with handler:
                await steps.all_here.wait()
                scope.cancel()
                await anyio.lowlevel.checkpoint()

        assert scope.cancelled_caught
        assert handler.status == "detached"
        assert run_of(handler).outcome.unseen is None

    run_virtually(backend, main)


@on_each_backend
def test_failure_of_the_clean_up_of_a_detached_run_is_raised(backend):
    """P8: it is kept beside the detachment, and the owner raises it."""

    async def main():
        error = Mine()
        steps = Steps(cleanup=error)
        handler = durable(Fan(steps))
        with Catch() as left:
            async with handler:
                await steps.all_here.wait()
                detach_run(run_of(handler), "it is released")

        assert left.error is error
        assert handler.status == "detached"
        assert handler.exceptions == (error,)
        assert "while it unwound (detached)" in error.__notes__[0]

    run_virtually(backend, main)


@on_each_backend
def test_released_run_raises_nothing_in_its_owner(backend):
    """Without an error of the store, a detachment is no failure."""

    async def main():
        steps = Steps()
        with nothing_left():
            async with durable(Fan(steps)) as handler:
                await steps.all_here.wait()
                detach_run(run_of(handler), "it is released")

        assert handler.exceptions == ()
        with pytest.raises(WorkflowDetachedError, match="it is released"):
            handler.result()

    run_virtually(backend, main)


def test_first_cause_decides():
    """A run that has settled otherwise is not detached, and a detached one stays that."""

    async def main():
        steps = Steps()
        async with durable(Fan(steps)) as handler:
            await steps.all_here.wait()
            detach_run(run_of(handler), "first")
            detach_run(run_of(handler), "second", OSError())

        assert run_of(handler).outcome.reason == "first"
        assert handler.exceptions == ()

        async with durable(Fan(Steps())) as other:
            other.cancel("first")
            detach_run(run_of(other), "second", OSError())

        assert other.status == "cancelled"

    run_virtually("trio", main)


def test_end_that_could_not_be_stored_is_undone():
    """A stop event that no record holds has not ended the run; a failure before it is kept."""
    outcome = Outcome("Flow", "r-1", None)
    outcome.complete(StopEvent(result=1))
    outcome.detach("its store has failed", OSError("disk full"))
    last = outcome.conclude()

    assert outcome.status == "detached"
    assert outcome.stop_event is None
    assert type(last) is WorkflowDetachedEvent
    assert outcome.unseen is outcome.error

    failed = Outcome("Flow", "r-1", None)
    error = Mine()
    failed.fail(error, None, None, trio.Cancelled)
    failed.detach("its store has failed", OSError("disk full"))
    failed.conclude()

    assert failed.errors == (failed.error, error)
    assert type(failed.unseen) is WorkflowDetachedError


# -- what a detached handler refuses -----------------------------------------------------------------


@on_each_backend
def test_detached_handler_shows_the_way_to_its_run(backend):
    """What cannot reach the run is refused, so that no answer and no cancellation is lost."""

    async def main():
        steps = Steps()
        async with durable(Fan(steps)) as handler:
            await steps.all_here.wait()
            detach_run(run_of(handler), "it is released")
            for unwound in (False, True):
                if unwound:
                    await anyio.sleep(2)

                assert handler.is_done() is unwound
                with pytest.raises(WorkflowDetachedError) as raised:
                    handler.send_event(Done(number=1))

                assert str(raised.value) == (
                    "the run r-1 of Fan has left this process and continues from its store: it is "
                    "released; expected `runs.send_event('r-1', event)`"
                )
                with pytest.raises(WorkflowDetachedError, match=r"`runs\.cancel\('r-1'\)`$"):
                    handler.cancel()
                with pytest.raises(WorkflowDetachedError, match=r"`runs\.cancel\('r-1'\)`$"):
                    await anyio.to_thread.run_sync(handler.from_thread.cancel)

    run_virtually(backend, main)


# -- who else tells of it ----------------------------------------------------------------------------


@on_each_backend
def test_recording_of_a_detached_run(backend):
    """A recording has the part of the run that was here, and who has ended it."""

    async def main():
        recorder = Recorder()
        steps = Steps()
        async with durable(Fan(steps, observers=[recorder])) as handler:
            await steps.all_here.wait()
            detach_run(run_of(handler), "its lease was lost")

        (recorded,) = recorder.recording.runs
        assert recorded.status == "detached"
        assert recorded.stop_event is None
        (cancellation,) = recorded.cancellations
        assert cancellation.by == "outside"
        assert cancellation.reason == "its lease was lost"

    run_virtually(backend, main)


@on_each_backend
def test_snapshot_of_a_detached_run_continues(backend):
    """The steps that its part was in begin again, as after a cancellation."""

    async def main():
        steps = Steps()
        workflow = Fan(steps)
        async with durable(workflow) as handler:
            await steps.all_here.wait()
            detach_run(run_of(handler), "it is released")
        snapshot = handler.snapshot()

        assert snapshot["status"] == "detached"
        began = steps.began
        async with workflow.resume(snapshot) as resumed:
            while steps.began < began + 3:
                await anyio.sleep(0.1)
            resumed.cancel()

    run_virtually(backend, main)


def test_event_of_a_detachment_has_a_reason():
    """It is a stop event, like all terminal ones."""
    event = WorkflowDetachedEvent(reason="it is released")

    assert isinstance(event, StopEvent)
    assert event.to_dict() == {"reason": "it is released"}
