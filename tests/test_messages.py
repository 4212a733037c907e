"""What the errors say: every kind of bad input, and the whole message that comes from it.

A case is a program and, behind the arrow, its error. Each message has been read and holds three
things: what happened, what was expected, and how it is written right. Line breaks do not count.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
import warnings

import pytest


pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:a run of .* was never started")]

#: What every program finds in its module.
PRELUDE = """
import asyncio, threading
from contextlib import asynccontextmanager
from typing import Annotated
import anyio, attrs, trio
from sluicegate import *
from sluicegate._data.from_outside import decode_event
class A(Event): n: int
class B(Event): n: int
class Answer(HumanResponseEvent): text: str
class Ask(InputRequiredEvent): text: str
@attrs.define
class Count: n: int = 0
@attrs.define
class Total: n: int = 0
def make(): return 1
def generate(): yield 1
@asynccontextmanager
async def open_later(): yield 1
def open_it(): yield 1
async def give(value): return value
class Simple(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: return StopEvent()
class Waits(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: await anyio.sleep_forever()
class Asks(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Ask: return Ask(text="?")
    @step
    async def listen(self, ev: Answer) -> StopEvent: return StopEvent()
class Calls(Workflow):
    def __init__(self, function): super().__init__(); self.function = function
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> A | StopEvent: return await self.function(ctx)
    @step
    async def more(self, ev: A) -> None: ...
class Threaded(Workflow):
    def __init__(self, function): super().__init__(); self.function = function
    @step
    def only(self, ctx: Context, ev: StartEvent) -> StopEvent: return self.function(ctx)
"""

GRAPH = r"""
# no steps
class Flow(Workflow): ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. it has no steps; expected
... methods like `@step async def begin(self, ev: StartEvent) -> StopEvent`

# no start
class Flow(Workflow):
    @step
    async def end(self, ev: Answer) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. no step takes the StartEvent,
... so a run cannot begin; expected one step with a parameter `ev: StartEvent` or a subclass

# two starts
class Other(StartEvent): n: int
class Flow(Workflow):
    @step
    async def one(self, ev: StartEvent) -> StopEvent: ...
    @step
    async def two(self, ev: Other) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 2 faults: 1. its steps take different start
... events, StartEvent and Other; expected one class, because a run begins with one event 2. the
... step two cannot be reached from StartEvent; expected a reachable step that makes Other

# no stop
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A: ...
    @step
    async def go(self, ev: A) -> None: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. no step returns a StopEvent, so
... a run cannot end; expected a step with `-> StopEvent` or a subclass

# stop taken
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...
    @step
    async def go(self, ev: StopEvent) -> None: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. the step go takes StopEvent,
... which ends the run and is delivered to no step; expected another event before the stop

# list of stops
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent | list[StopEvent]: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. the step begin returns a list
... of StopEvent; expected `-> StopEvent`, because a run ends once

# field called ctx
class Begin(StartEvent): ctx: int
class Flow(Workflow):
    @step
    async def begin(self, ev: Begin) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Begin has a field 'ctx', which
... is a parameter of run(); expected another name

# made, not taken
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A | StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. no step takes A, which
... the step begin makes; expected a step with a parameter `ev: A`

# taken, not made
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...
    @step
    async def go(self, ev: A) -> None: ...
Flow(skip_graph_checks=["reachability"])
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. no step makes A, which the
... step go takes; expected a step with `-> A` (events sent with ctx.send_event are
... declared there too)

# unreachable
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...
    @step
    async def one(self, ev: A) -> B: ...
    @step
    async def two(self, ev: B) -> A | None: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 2 faults: 1. the step one cannot be reached
... from StartEvent; expected a reachable step that makes A 2. the step two cannot be reached
... from StartEvent; expected a reachable step that makes B

# dead end
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A | StopEvent: ...
    @step
    async def one(self, ev: A) -> B: ...
    @step
    async def two(self, ev: B) -> A: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 2 faults: 1. no path leads from the step
... one to a StopEvent, so a run that reaches it never ends; expected a step on the path
... with `-> StopEvent` or `| None` 2. no path leads from the step two to a StopEvent, so a
... run that reaches it never ends; expected a step on the path with `-> StopEvent` or `|
... None`

# join without fan-out
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A: ...
    @step
    async def end(self, evs: list[A]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. the step end joins list[A], but
... no fan-out leads to it; expected a step before it with `-> list[...]`

# unclear join
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[A]: ...
    @step
    async def more(self, ev: A) -> list[B] | B: ...
    @step
    async def end(self, evs: list[B]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. the step end joins the fan-out
... of begin and also the fan-out of more inside it; expected a separate join for each,
... with its own event

# overridden without step
class Base(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: ...
class Flow(Base):
    async def begin(self, ev): ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin overrides a step but
... is not a step itself; expected `@step` above it

# two general handlers
class Flow(Simple):
    @catch_error
    async def one(self, ev: StepFailedEvent) -> StopEvent: ...
    @catch_error
    async def two(self, ev: StepFailedEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. two and one both catch the
... failures of all steps; expected `for_steps=[...]` on one of them

# unknown step handled
class Flow(Simple):
    @catch_error(for_steps=["beginn"])
    async def one(self, ev: StepFailedEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. one catches the failures of
... 'beginn', but there is no such step; expected one or more of begin

# handler handled
class Flow(Simple):
    @catch_error(for_steps=["two"])
    async def one(self, ev: StepFailedEvent) -> StopEvent: ...
    @catch_error
    async def two(self, ev: StepFailedEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. one catches the failures of
... two, which is a handler itself; expected steps, because a failure in a handler fails the run

# step handled twice
class Flow(Simple):
    @catch_error(for_steps=["begin"])
    async def one(self, ev: StepFailedEvent) -> StopEvent: ...
    @catch_error(for_steps=["begin"])
    async def two(self, ev: StepFailedEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. two and one both catch the
... failures of begin; expected its name in only one `for_steps=[...]`

# states apart
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[Count], ev: StartEvent) -> A: ...
    @step
    async def end(self, ctx: Context[Total], ev: A) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. its steps name incompatible state
... classes, Count and, in end, Total; expected one class, or one derived from
... the others

# state without default
@attrs.define
class State: n: int
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. it has the state State: State
... cannot be made without 'n'; expected a default for each, such as `n: int = 0`

# state of no kind
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[int], ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. it has the state int: <class
... 'int'> cannot be a state; expected an attrs class, a dataclass, a pydantic model

# a step that is called run
class Flow(Workflow):
    @step
    async def run(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.run is a step, and every
... workflow has a method of that name; expected another name

"""

SIGNATURES = r"""
# no event
class Flow(Workflow):
    @step
    async def begin(self) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes no event;
... expected a parameter like `ev: SomeEvent`

# no return
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) : ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin has no return
... annotation; expected `-> SomeEvent`, `-> A | B` or `-> None`

# return of no event
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> int | StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin is annotated as returning
... int; expected event classes, lists of them, or None

# return list of no event
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> list[int]: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin is annotated as returning
... list[int]; expected event classes, lists of them, or None

# unannotated
class Flow(Workflow):
    @step
    async def begin(self, ev) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin has a parameter 'ev'
... that is neither an event nor the context; expected `ev: SomeEvent`, `ev: Context`, `ev:
... Annotated[T, Resource(factory)]` or a default

# plain parameter
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent, n: int) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin has a parameter 'n'
... that is neither an event nor the context; expected `n: SomeEvent`, `n: Context`, `n:
... Annotated[T, Resource(factory)]` or a default

# keyword only event
class Flow(Workflow):
    @step
    async def begin(self, *, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'ev' by
... keyword only; expected it before the `*`, because steps are called by position

# after default
class Flow(Workflow):
    @step
    async def begin(self, x: int = 0, ev: StartEvent = None) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'ev' after
... 'x'; expected it before, because steps are called by position, with only their events and
... the context

# context twice
class Flow(Workflow):
    @step
    async def begin(self, a: Context, b: Context, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes the context
... twice, the second time as 'b'; expected one parameter `ctx: Context`

# context by keyword
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent, *, ctx: Context) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'ctx' by
... keyword only; expected it before the `*`, because steps are called by position

# list and event
class Flow(Workflow):
    @step
    async def begin(self, evs: list[A], ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin joins a list and
... takes other events as well; expected one parameter `evs: list[E]` and no
... other event

# two lists
class Flow(Workflow):
    @step
    async def begin(self, evs: list[A], more: list[B]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin joins a list and
... takes other events as well; expected one parameter `evs: list[E]` and no
... other event

# union slot
class Flow(Workflow):
    @step
    async def begin(self, a: A | B, b: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes one of each of
... several events, so 'a' cannot be a union; expected one class for each parameter

# take of no list
class Flow(Workflow):
    @step
    async def begin(self, ev: Annotated[StartEvent, Take(1)]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes the first 1 of
... 'ev', which is not a list; expected `ev: Annotated[list[StartEvent], Take(1)]`

# unresolvable
class Flow(Workflow):
    @step
    async def begin(self, ev: 'Unknown') -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin has an annotation
... that cannot be resolved (name 'Unknown' is not defined); expected the class to be defined
... before the workflow, and not only under `if TYPE_CHECKING`

# classmethod
class Flow(Workflow):
    @step
    @classmethod
    async def begin(cls, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin is a classmethod;
... expected a method `async def begin(self, ...)`, because a step belongs to a workflow object

# staticmethod
class Flow(Workflow):
    @step
    @staticmethod
    async def begin(ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin is a staticmethod;
... expected a method `async def begin(self, ...)`, because a step belongs to a workflow object

# handler takes no failure
class Flow(Simple):
    @catch_error
    async def one(self, ev: A) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.one handles failures but
... takes none; expected a parameter `ev: StepFailedEvent`

# step takes a failure
class Flow(Simple):
    @step
    async def one(self, ev: StepFailedEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.one takes StepFailedEvent
... but does not handle failures; expected `@catch_error` instead of `@step`

# resource and config
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, Resource(make), ResourceConfig('a.toml')]
    ) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'x' from the
... resource make, and from a.toml as well; expected one `Resource(...)` or
... `ResourceConfig(...)` in an Annotated

# process with self
class Flow(Workflow):
    @step(in_process=True)
    def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'self', which
... is not sent to a worker process; expected `@staticmethod` and the events alone:
... `def name(ev: SomeEvent) -> OtherEvent`

# process with resource
class Flow(Workflow):
    @step(in_process=True)
    @staticmethod
    def begin(ev: StartEvent, x: Annotated[int, Resource(make)]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin runs in a
... process and asks for resources; expected only its event

"""

OPTIONS = r"""
# num_workers
class Flow(Workflow):
    @step(num_workers=0)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: num_workers of the step Flow.begin is 0; expected an int of at
... least 1

# num_workers bool
class Flow(Workflow):
    @step(num_workers=True)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: num_workers of the step Flow.begin is True; expected an int of at
... least 1

# timeout text
class Flow(Workflow):
    @step(timeout='1s')
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: timeout of the step Flow.begin is '1s'; expected seconds above 0,
... or None

# idle_timeout
class Flow(Workflow):
    @step(idle_timeout=0)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: idle_timeout of the step Flow.begin is 0; expected seconds above
... 0, or None

# retry
class Flow(Workflow):
    @step(retry=3)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: retry of the step Flow.begin is 3; expected
... `retry=Retry(stop=..., wait=..., when=...)`

# limiter
class Flow(Workflow):
    @step(limiter=3)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: limiter of the step Flow.begin is 3; expected an async context
... manager like trio.CapacityLimiter(10) or sluicegate.RateLimiter(10)

# in_process async
class Flow(Workflow):
    @step(in_process=True)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the step Flow.begin is an async method, but in_process is for
... plain ones; expected `def begin(...)`, or `@step` without in_process

# abandon async
class Flow(Workflow):
    @step(abandon_on_cancel=True)
    async def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the step Flow.begin is an async method, but abandon_on_cancel is
... for plain ones; expected `def begin(...)`, or `@step` without abandon_on_cancel

# both
class Flow(Workflow):
    @step(in_process=True, abandon_on_cancel=True)
    def begin(self, ev: StartEvent) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the step Flow.begin has both in_process and abandon_on_cancel;
... expected in_process alone, because a cancelled process is killed

# async generator
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        yield
--> WorkflowValidationError: the step Flow.begin is an async generator; expected an async
... method that returns its event and streams with ctx.write_event_to_stream(event)

# generator
class Flow(Workflow):
    @step
    def begin(self, ev: StartEvent) -> StopEvent:
        yield
--> WorkflowValidationError: the step Flow.begin is a generator; expected an async method that
... returns its event and streams with ctx.write_event_to_stream(event)

# no function
step(3)
--> WorkflowValidationError: @step needs a method, but 3 is not one; expected `async def
... name(self, ev: ...) -> ...`

# class as a step
@step
class Flow(Workflow): ...
--> WorkflowValidationError: @step needs a method, but Flow is not one; expected `async def
... Flow(self, ev: ...) -> ...`

# workflow is none
@step(workflow=int)
async def begin(ev: StartEvent) -> StopEvent: ...
--> WorkflowValidationError: @step(workflow=<class 'int'>); expected a subclass of Workflow

# name taken
@step(workflow=Simple)
async def begin(ev: StartEvent) -> StopEvent: ...
--> WorkflowValidationError: Simple already has an attribute 'begin'; expected another name for the step

# add_step unmarked
async def more(ev: StartEvent) -> StopEvent: ...
Simple.add_step(more)
--> WorkflowValidationError: more is not a step; expected `@step(workflow=Simple)` above it

# for_steps text
catch_error(for_steps='begin')
--> WorkflowValidationError: for_steps is 'begin'; expected a list of names: ['begin']

# max_recoveries
catch_error(max_recoveries=0)
--> WorkflowValidationError: max_recoveries is 0; expected an int of at least 1

# workflow timeout
Simple(timeout=0)
--> WorkflowValidationError: Simple(timeout=0); expected seconds above 0, or None for no limit

# workflow timeout text
Simple(timeout='30')
--> WorkflowValidationError: Simple(timeout='30'); expected seconds above 0, or None for no
... limit

# stream_buffer
Simple(stream_buffer=0)
--> WorkflowValidationError: Simple(stream_buffer=0); expected an int of at least 1

# stream_history
Simple(stream_history=1.5)
--> WorkflowValidationError: Simple(stream_history=1.5); expected an int of at least 1

# skip unknown
Simple(skip_graph_checks=['reach'])
--> WorkflowValidationError: Simple(skip_graph_checks=...) names 'reach'; expected some of
... 'reachability', 'terminal_event', 'dead_end'

# skip text
Simple(skip_graph_checks='reachability')
--> WorkflowValidationError: Simple(skip_graph_checks='reachability'); expected a list of
... names: ['reachability']

# num_concurrent_runs
Simple(num_concurrent_runs=0)
--> WorkflowValidationError: Simple(num_concurrent_runs=0); expected an int of at least 1, or
... None

# observers
Simple(observers=[print])
--> WorkflowValidationError: Simple(observers=[<built-in function print>]); expected a list of
... objects whose classes are derived from sluicegate.Observer

# observer alone
Simple(observers=Observer())
--> WorkflowValidationError: Simple(observers=<sluicegate._observers.Observer object at 0x...>);
... expected a list of objects whose classes are derived from sluicegate.Observer

# Take
Take(0)
--> WorkflowValidationError: Take(0); expected an int of at least 1: Take(1)

# Retry stop
Retry(stop=0)
--> WorkflowValidationError: stop of Retry is 0; expected a number of attempts of at least 1,
... `Retry(stop=3)`, or a stop of tenacity, `Retry(stop=stop_after_delay(60))`

# Retry wait
Retry(wait=-1)
--> WorkflowValidationError: wait of Retry is -1; expected seconds of at least 0,
... `Retry(wait=0.5)`, or a wait of tenacity, `Retry(wait=wait_exponential_jitter())`

# Retry when
Retry(when='OSError')
--> WorkflowValidationError: when of Retry is 'OSError'; expected a subclass of Exception or a
... tuple of them, `Retry(when=OSError)`, or a condition of tenacity,
... `Retry(when=retry_if_exception_message(match='busy'))`

# Retry wrong place
Retry(wait=tenacity.stop_after_attempt(3))
--> WorkflowValidationError: wait of Retry is stop_after_attempt(...), which is for another
... argument; expected `Retry(stop=stop_after_attempt(...))`

# Retry class
Retry(wait=tenacity.wait_random)
--> WorkflowValidationError: wait of Retry is the class wait_random; expected an object of it,
... `Retry(wait=wait_random(...))`

# Retry async
Retry(when=trio.sleep)  # which tenacity would have to await
--> WorkflowValidationError: when of Retry is asynchronous in sleep, but it is called between two
... attempts and cannot wait; expected a plain function, `Retry(when=lambda state: ...)`, or
... a strategy of tenacity itself, not of tenacity.asyncio

# Retry result
Retry(when=tenacity.retry_if_result(bool))
--> WorkflowValidationError: when of Retry contains retry_if_result(...), which never applies:
... the result of a step is an event, and an attempt that returns one is not retried;
... expected the step to raise, and `Retry(when=TheError)`

# RateLimiter rate
RateLimiter(0)
--> ValueError: rate of RateLimiter is 0; expected a number above 0: `RateLimiter(10)`

# RateLimiter per
RateLimiter(10, per=-1)
--> ValueError: per of RateLimiter is -1; expected seconds above 0: `RateLimiter(10, per=60)`

# RateLimiter burst
RateLimiter(10, burst=0)
--> ValueError: burst of RateLimiter is 0; expected an int of at least 1: `RateLimiter(10,
... per=1.0, burst=5)`

# RateLimiter too fast
RateLimiter(1e308, per=1e-300)
--> ValueError: RateLimiter(1e+308, per=1e-300) has 0.0 seconds from one entry to the next;
... expected a number of seconds above 0: `RateLimiter(10, per=60)`

# Resource value
Resource(3)
--> WorkflowValidationError: Resource was given 3, which cannot be called; expected a function
... or a class: `Resource(make_it)`

# Resource called
Resource(open_it())
--> WorkflowValidationError: Resource was given <generator object open_it at 0x...>, which
... cannot be called; expected a function or a class: `Resource(make_it)`, without calling it

# Resource scope
Resource(make, scope='process')
--> WorkflowValidationError: Resource(make, scope='process'); expected 'step', 'run' or
... 'workflow'

# Resource kept and not
Resource(make, scope='workflow', cache=False)
--> WorkflowValidationError: Resource(make, scope='workflow', cache=False) asks both to keep the resource
... and not to keep it; expected `Resource(make, scope='workflow')` or `Resource(make,
... scope='step')`

# Resource grace
Resource(make, grace=0)
--> WorkflowValidationError: Resource(make, grace=0); expected seconds above 0

# Resource enter
Resource(generate, enter=False)
--> WorkflowValidationError: Resource(generate, enter=False), but generate is a generator,
... which yields nothing until it is entered; expected `Resource(generate)`, or a function
... that returns the value

# ResourceConfig suffix
ResourceConfig('app.yaml')
--> WorkflowValidationError: ResourceConfig('app.yaml') is neither JSON nor TOML by its
... suffix; expected a path that ends in '.json' or '.toml'

# ResourceConfig selector
ResourceConfig('app.toml', 'a..b')
--> WorkflowValidationError: ResourceConfig('app.toml', 'a..b') has an empty part in its
... selector; expected names with dots between them, like 'databases.main'

# RateLimiter text
RateLimiter('10')
--> ValueError: rate of RateLimiter is '10'; expected a number above 0: `RateLimiter(10)`

# Take text
Take('2')
--> WorkflowValidationError: Take('2'); expected an int of at least 1: Take(1)

# step with class
step(workflow=Simple)(3)
--> WorkflowValidationError: @step needs a method, but 3 is not one; expected `async def
... name(self, ev: ...) -> ...`

# add_step number
Simple.add_step(3)
--> WorkflowValidationError: 3 is not a step; expected `@step(workflow=Simple)` above it

# timeouts nan
Simple(timeout=float('nan'))
--> WorkflowValidationError: Simple(timeout=nan); expected seconds above 0, or None for no
... limit

# timeout bool
Simple(timeout=True)
--> WorkflowValidationError: Simple(timeout=True); expected seconds above 0, or None for no
... limit

# serializable
Simple(serializable=[3])
--> WorkflowValidationError: Simple(serializable=[3]); expected a list of classes:
... Simple(serializable=[Money])

# serializable class
Simple(serializable=A)
--> WorkflowValidationError: Simple(serializable=<class 'program.A'>); expected a list of
... classes: Simple(serializable=[Money])

"""

EVENTS = r"""
# missing
A()
--> TypeError: A lacks 'n'; expected A(n=...)

# unknown
A(n=1, m=2)
--> TypeError: A has no field 'm'; expected A(n=...)

# misspelt
Answer(txet='x')
--> TypeError: Answer has no field 'txet', did you mean 'text'? expected Answer(text=...)

# private
class P(Event):
    n: int
    _x: int = 0
P(n=1, _x=1)
--> TypeError: P has no field '_x'; expected P(n=...)

# init
class P(Event):
    def __init__(self): ...
--> TypeError: P defines __init__, which its fields make for it; expected fields as
... annotations, and __attrs_post_init__ for further work with them

# types
class P(Event, validate=True):
    n: int
P(n='one')
--> TypeError: P.n is 'one', which is not int: str is not an instance of int

# outside type
decode_event(A, {'n': 'one'})
--> TypeError: A.n is 'one', which is not int: Expected `int`, got `str`

# outside list
decode_event(A, [1])
--> TypeError: A was given [1]; expected an object with its fields: {...}

# outside missing
decode_event(A, {})
--> TypeError: A lacks 'n'; expected A(n=...)

"""

HANDLERS = r"""
# start missing
class Begin(StartEvent): topic: str
class Flow(Workflow):
    @step
    async def begin(self, ev: Begin) -> StopEvent: ...
Flow().run()
--> TypeError: Begin lacks 'topic'; expected Begin(topic=...)

# start of another class
class Begin(StartEvent): topic: str
class Flow(Workflow):
    @step
    async def begin(self, ev: Begin) -> StopEvent: ...
Flow().run(start_event=StartEvent(topic='x'))
--> TypeError: Flow begins with Begin, and was given StartEvent; expected
... run(start_event=Begin(...)) or its fields as keywords

# start and fields
Simple().run(start_event=StartEvent(), topic='x')
--> TypeError: run() was given both a start_event and topic; expected one or the other

# super missing
class Flow(Simple):
    def __init__(self): ...
Flow().run()
--> WorkflowRuntimeError: Flow.__init__ does not call its parent's; expected
... `super().__init__(timeout=...)` in it

# unstarted
Simple().run(run_id='r').stream_events()
--> WorkflowRuntimeError: stream_events() needs a started run, and this one has no owner that
... could run it (a step does not inherit the scope around its run); expected one of result =
... await workflow.run(...) # in place async with workflow.run(...) as handler: ... # owned by
... a block handler = workflow.run(...).start_soon(nursery) # owned by a nursery async with
... workflow_scope(): handler = workflow.run(...); ... # owned by a scope

# unstarted send
Simple().run(run_id='r').send_event(Answer(text='x'))
--> WorkflowRuntimeError: send_event() needs a started run, and this one has no owner that
... could run it (a step does not inherit the scope around its run); expected one of result =
... await workflow.run(...) # in place async with workflow.run(...) as handler: ... # owned by
... a block handler = workflow.run(...).start_soon(nursery) # owned by a nursery async with
... workflow_scope(): handler = workflow.run(...); ... # owned by a scope

# started twice
handler = Simple().run(run_id='r')
await handler
async with handler: ...
--> WorkflowRuntimeError: this run was started before, in place, and runs once; expected a new
... `workflow.run(...)` for another run

# no nursery
Simple().run(run_id='r').start_soon(None)
--> TypeError: start_soon() was given None; expected a Trio nursery, an AnyIO task group, an
... asyncio.TaskGroup or a workflow_scope

# result early
async with Waits().run(run_id='r') as handler:
    try: handler.result()
    finally: await handler.cancel()
--> WorkflowRuntimeError: the run r is not over (running); expected `await handler`

# after negative
async with Simple().run(run_id='r') as handler: handler.stream_events(after=-1)
--> ValueError: after is -1; expected the `stream.cursor` of a reader, the number of an event, or 0
... for the beginning

# after a cursor of another kind of run
async with Simple().run(run_id='r') as handler: handler.stream_events(after="1000000001000000000000000")
--> ValueError: after is '1000000001000000000000000', a cursor of a durable run, and this run has no
... store; expected `stream.cursor` of a reader of the same run

# after a cursor as an int
async with Simple().run(run_id='r') as handler: handler.stream_events(after=1000000001000000000000000)
--> ValueError: after is the int 1000000001000000000000000; expected a cursor as the str that it is:
... `after='1000000001000000000000000'`

# after a long str
async with Simple().run(run_id='r') as handler: handler.stream_events(after="1" * 40)
--> ValueError: after is '1111111111111111111111111111111111111111', which is too long for a cursor;
... expected `stream.cursor`

# send wrong
async with Waits().run(run_id='r') as handler:
    try: handler.send_event(A(n=1))
    finally: await handler.cancel()
--> WorkflowRuntimeError: no step of Waits takes A from outside, and none waits for it now;
... expected an event of StartEvent, or `@step(waits_for=[A])` for a step that waits for it later

# send to unknown step
async with Asks().run(run_id='r') as handler:
    try: handler.send_event(Answer(text='x'), step='lisen')
    finally: await handler.cancel()
--> WorkflowRuntimeError: Asks has no step 'lisen'; expected one of begin, listen

# send to wrong step
async with Asks().run(run_id='r') as handler:
    try: handler.send_event(Answer(text='x'), step='begin')
    finally: await handler.cancel()
--> WorkflowRuntimeError: the step begin of Asks does not take Answer; expected StartEvent

# send late
handler = Simple().run(run_id='r')
await handler
handler.send_event(Answer(text='x'))
--> WorkflowRuntimeError: the run r of Simple is over (completed), so Answer cannot be delivered;
... expected it while the run is active: `if not handler.is_done(): ...`

# ctx of another
Simple().run(ctx=Context(Waits()))
--> WorkflowRuntimeError: run(ctx=...) of Simple was given a context of Waits; expected
... Context(workflow) with this workflow

# ctx of a running run
async with Waits().run(run_id='r') as handler:
    try: Waits().run(ctx=handler.ctx)
    finally: await handler.cancel()
--> WorkflowRuntimeError: run(ctx=...) was given the context of the run r, which is not over;
... expected `await handler` before, or Context(workflow)

# coroutine to run
import sluicegate
async def main(): ...
c = main()
try: sluicegate.run(c)
finally: c.close()
--> TypeError: run() was given a coroutine; expected the function: run(main), not run(main())

# backend
import sluicegate
async def main(): ...
sluicegate.run(main, backend='curio')
--> ValueError: there is no backend 'curio'; expected 'trio' or 'asyncio'

# no scope
handler = Simple().run(run_id='r')
handler.stream_events()
--> WorkflowRuntimeError: stream_events() needs a started run, and this one has no owner that
... could run it (a step does not inherit the scope around its run); expected one of result =
... await workflow.run(...) # in place async with workflow.run(...) as handler: ... # owned by
... a block handler = workflow.run(...).start_soon(nursery) # owned by a nursery async with
... workflow_scope(): handler = workflow.run(...); ... # owned by a scope

# stalled
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent | None: ...
await Flow().run(run_id='r')
--> WorkflowStalledError: the run r of Flow can never end: no step runs, no event is pending,
... and no question is open; expected some step to return a StopEvent

# handler thread
async with Waits().run(run_id='r') as handler:
    try: await anyio.to_thread.run_sync(handler.send_event, Answer(text='x'))
    finally: await handler.cancel()
--> WorkflowRuntimeError: send_event was called from another thread than the one that runs
... Waits; expected `handler.from_thread.send_event(...)`, or
... trio.from_thread.run_sync(...send_event, ...) or its AnyIO counterpart

# from_thread early
handler = Simple().run()
try:
    await anyio.to_thread.run_sync(handler.from_thread.send_event, Answer(text='x'))
finally:
    handler.cancel()
--> WorkflowRuntimeError: from_thread.send_event() was called before the run was started;
... expected a run that its owner has started: `async with workflow.run(...) as handler: ...`

# a step that awaits its own run
async def f(ctx): await box[0]
handler = Calls(f).run(run_id='r')
box = [handler]
await handler
--> WorkflowRuntimeError: a step of the run r awaits its own run, which cannot end before the
... step does; expected the step to return, or another run

# run no event
Simple().run(start_event='x')
--> TypeError: Simple begins with StartEvent, and was given str; expected
... run(start_event=StartEvent(...)) or its fields as keywords

# cancel later
async with Waits().run(run_id='r') as handler:
    await handler.cancel(after='later')
--> ValueError: cancel(after='later'); expected 'now' or 'steps':
... `handler.cancel(after='steps')`

"""

CONTEXTS = r"""
# undeclared
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent: return A(n=1)
await Flow().run(run_id='r')
--> WorkflowRuntimeError: Flow.begin returned or sent a A, which it does not declare; expected
... StopEvent, or `-> StopEvent | A` in its signature

# undeclared list
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> A | StopEvent: return [A(n=1)]
    @step
    async def end(self, ev: A) -> None: ...
await Flow().run(run_id='r')
--> WorkflowRuntimeError: Flow.begin returned a list, which it does not declare; expected A or
... StopEvent, or `-> list[SomeEvent]` in its signature

# no event
await Calls(lambda ctx: give('text')).run(run_id='r')
--> WorkflowRuntimeError: Calls.only returned or sent a str, not an event; expected A or
... StopEvent

# undeclared send
async def f(ctx): ctx.send_event(B(n=1))
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: Calls.only returned or sent a B, which it does not declare; expected
... A or StopEvent, or `-> A | StopEvent | B` in its signature

# send no event
async def f(ctx): ctx.send_event('x')
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: Calls.only returned or sent a str, not an event; expected A or
... StopEvent

# publish no event
async def f(ctx): ctx.write_event_to_stream('x')
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: 'x' is not an event; expected an instance of a subclass of Event

# publish stop
async def f(ctx): ctx.write_event_to_stream(StopEvent())
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: StopEvent ends the run and comes last on the stream by itself;
... expected the step to return it

# collect wrong
async def f(ctx): ctx.collect_events(A(n=1), [B])
await Calls(f).run(run_id='r')
--> WorkflowStalledError: the run r of Calls can never end: no step runs, no event is pending,
... and no question is open: Calls.only lacks 1 x B; Calls.only returned None, which its
... signature does not declare, and so ended its branch; expected some step to return a StopEvent

# wait no event
async def f(ctx): await ctx.wait_for_event('x')
await Calls(f).run(run_id='r')
--> TypeError: wait_for_event was given 'x'; expected a class of events: `await
... ctx.wait_for_event(HumanResponseEvent)`

# wait instance
async def f(ctx): await ctx.wait_for_event(Answer(text='x'))
await Calls(f).run(run_id='r')
--> TypeError: wait_for_event was given Answer(text='x'); expected a class of events: `await
... ctx.wait_for_event(HumanResponseEvent)`

# ctx outside
handler = Simple().run(run_id='r')
await handler
handler.ctx.send_event(A(n=1))
--> WorkflowRuntimeError: the run r of Simple is over (completed), so A cannot be delivered;
... expected it while the run is active: `if not handler.is_done(): ...`

# ctx before a run
Context(Simple()).send_event(A(n=1))
--> WorkflowRuntimeError: send A was called outside of a step; expected the `ctx` that a step
... is given, or, from outside, the handler: `handler.send_event(event)`

# ctx outside wait
handler = Simple().run(run_id='r')
await handler
await handler.ctx.wait_for_event(Answer)
--> WorkflowRuntimeError: wait for Answer was called outside of a step; expected the `ctx`
... that a step is given, or, from outside, the handler: `handler.send_event(event)`

# publish before
Context(Simple()).write_event_to_stream(A(n=1))
--> WorkflowRuntimeError: A was published before there is a run; expected a step to do it

# publish after
handler = Simple().run(run_id='r')
await handler
handler.ctx.write_event_to_stream(A(n=1))
--> WorkflowRuntimeError: the run is over, so A cannot be published any more; expected a task
... that the step waits for

# branch waits for itself
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        box.append(ctx.send_event(A(n=1)))
    @step
    async def go(self, ctx: Context, ev: A) -> StopEvent: await box[0].wait()
box = []
await Flow().run(run_id='r')
--> WorkflowRuntimeError: a step waits for the branch that it is itself a part of, which
... cannot end before the step does; expected the step that sent the event to wait

# branch held back
class Flow(Workflow):
    @step(retry=Retry(stop=1))
    async def begin(self, ctx: Context, ev: StartEvent) -> A | None:
        await ctx.send_event(A(n=1)).wait()
    @step
    async def go(self, ctx: Context, ev: A) -> StopEvent: ...
await Flow().run(run_id='r')
--> WorkflowRuntimeError: the step begin waits for an event that is kept back until the step
... has succeeded, because it has retries; expected `@step(retry=..., send_at_once=True)`

# run_child class
async def f(ctx): await ctx.run_child(Simple)
await Calls(f).run(run_id='r')
--> TypeError: run_child was given the class Simple; expected an object: run_child(Simple())

# run_child stream
async def f(ctx): await ctx.run_child(Simple(), stream='on')
await Calls(f).run(run_id='r')
--> ValueError: stream is 'on'; expected 'forward', 'tag' or 'off'

# run_child fields
class Begin(StartEvent): topic: str
class Flow(Workflow):
    @step
    async def begin(self, ev: Begin) -> StopEvent: ...
async def f(ctx): await ctx.run_child(Flow())
await Calls(f).run(run_id='r')
--> TypeError: Begin lacks 'topic'; expected Begin(topic=...)

# from_thread in loop
async def f(ctx): ctx.from_thread.run(anyio.sleep, 0)
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: from_thread.run() was called in the event loop's own thread, which
... it would block; expected `await function(...)`

# from_thread sync in loop
async def f(ctx): ctx.from_thread.run_sync(print)
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: from_thread.run_sync() was called in the event loop's own thread,
... which it would block; expected `function(...)`

# from_thread async fn
await Threaded(lambda ctx: ctx.from_thread.run_sync(anyio.sleep, 0)).run(run_id='r')
--> TypeError: from_thread.run_sync() was given an async function; expected
... `ctx.from_thread.run(function, ...)`

# from_thread sync fn
await Threaded(lambda ctx: ctx.from_thread.run(len, [])).run(run_id='r')
--> TypeError: from_thread.run() was given a function that returns 0; expected an async
... function, or `ctx.from_thread.run_sync(function, ...)`

# plain returns coroutine
await Threaded(lambda ctx: give(1)).run(run_id='r')
--> WorkflowRuntimeError: the step Threaded.only is a plain function and returned a coroutine;
... expected `async def only(...)`

# plain stop iteration
await Threaded(lambda ctx: next(iter([]))).run(run_id='r')
--> WorkflowRuntimeError: the step Threaded.only raised StopIteration, which cannot leave a
... step; expected `next(iterator, default)`, or an exception that says what is missing

# store path
async def f(ctx): await ctx.store.get('user.name')
await Calls(f).run(run_id='r')
--> StatePathError: 'user.name' leads nowhere: the state is a DictState with nothing in it;
... expected get('user.name', default=...)

# store no path
async def f(ctx): await ctx.store.get('user..name')
await Calls(f).run(run_id='r')
--> StatePathError: 'user..name' is not a path; expected names and indexes separated by dots:
... 'user.tags.0'

# store negative
async def f(ctx):
    await ctx.store.set('tags', [1])
    await ctx.store.get('tags.-1')
await Calls(f).run(run_id='r')
--> StatePathError: '-1' counts from the end; expected an index from 0 on, as in 'user.tags.0'

# store type
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[Count], ev: StartEvent) -> StopEvent:
        await ctx.store.set('n', 'x')
await Flow().run(run_id='r')
--> TypeError: Count.n would be 'x', which is not int

# store field
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[Count], ev: StartEvent) -> StopEvent:
        await ctx.store.set('m', 1)
await Flow().run(run_id='r')
--> StatePathError: 'm' leads nowhere: the state is a Count with 'n'; expected a field that it
... declares

# store class
class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[Count], ev: StartEvent) -> StopEvent:
        await ctx.store.set_state({'n': 1})
await Flow().run(run_id='r')
--> TypeError: {'n': 1} is not a Count; expected set_state(Count(...))

# store nested
async def f(ctx):
    async with ctx.store.edit_state(): await ctx.store.set('n', 1)
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: this task is inside its own `async with ctx.store.edit_state() as
... state:`, and would wait for itself; expected a change of the draft: `state.name = value`

# store attribute
async def f(ctx):
    async with ctx.store.edit_state() as state: state.count += 1
await Calls(f).run(run_id='r')
--> AttributeError: the state has no 'count', it has nothing in it; expected
... state.get('count')

# store reserved
async def f(ctx):
    async with ctx.store.edit_state() as state: state.get = 1
await Calls(f).run(run_id='r')
--> AttributeError: 'get' belongs to DictState itself; expected state['get'] = ...

# stream send
async def f(ctx): await ctx.stream.send('x')
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: 'x' is not an event; expected an instance of a subclass of Event

# publish class
async def f(ctx): ctx.write_event_to_stream(A)
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: <class 'program.A'> is not an event; expected an instance of a
... subclass of Event

# wait no question
async def f(ctx): await ctx.wait_for_event(Answer, 'x')
await Calls(f).run(run_id='r')
--> WorkflowRuntimeError: 'x' is not an event; expected an instance of a subclass of Event

# wait requirement list
async def f(ctx): await ctx.wait_for_event(Answer, requirements=['text'])
await Calls(f).run(run_id='r')
--> TypeError: requirements of wait_for_event is ['text']; expected fields with their values:
... `requirements={"name": "ann"}`

# store item
async def f(ctx): await ctx.store.set('a.b.0', 1); await ctx.store.set('a.b.0.c', 1)
await Calls(f).run(run_id='r')
--> StatePathError: 'a.b.0.c' leads nowhere: 'a.b.0' is a int; expected a change in `async
... with ctx.store.edit_state() as state:`

# ctx after its step
async def f(ctx):
    box.append(ctx)
    return StopEvent()
box = []
await Calls(f).run(run_id='r')
box[0].send_event(A(n=1))
--> WorkflowRuntimeError: the step only has ended, so it cannot send A any more; expected a
... task that the step waits for

"""

RESOURCES = r"""
# cycle
def one(x: Annotated[int, Resource(lambda: 1)], y: 'Annotated[int, Resource(two)]'): ...
def two(x: Annotated[int, Resource(one)]): ...
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent, x: Annotated[int, Resource(one)]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'x' from the
... resource one, which needs two, which needs one, which needs itself: one -> two -> one;
... expected one of them to do without the next

# bare parameter
def one(x): ...
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent, x: Annotated[int, Resource(one)]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'x' from the
... resource one, which has a parameter 'x' that nothing can fill; expected `x: Annotated[...,
... Resource(...)]`, `x: Context` or a default

# narrower
def one(x: Annotated[int, Resource(make, scope='step')]): ...
class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent, x: Annotated[int, Resource(one)]) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'x' from the
... resource one, which has the scope of the run and needs make, which has only that of the step;
... expected `Resource(make, scope='run')` in it, or `Resource(one, scope='step')`

# workflow with ctx
def one(ctx: Context): ...
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, Resource(one, scope='workflow')]
    ) -> StopEvent: ...
Flow()
--> WorkflowValidationError: the workflow Flow has 1 fault: 1. Flow.begin takes 'x' from the
... resource one, which takes the context as 'ctx', but has the scope of the workflow, which
... outlives every run; expected `Resource(one, scope='run')`

# no block
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, Resource(open_later, scope='workflow')]
    ) -> StopEvent: ...
await Flow().run(run_id='r')
--> WorkflowRuntimeError: the resource open_later is of the workflow's scope and has to be
... closed; expected `async with workflow:` around its runs

# block twice
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, Resource(make, scope='workflow')]
    ) -> StopEvent: ...
flow = Flow()
async with flow:
    async with flow: ...
--> WorkflowRuntimeError: the workflow's scope is entered already; expected one `async with`
... at a time around it

# config no part
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, ResourceConfig('app.toml', 'database.prot')]
    ) -> StopEvent: ...
await Flow().run(run_id='r')
--> ValueError: app.toml, at 'database.prot' does not exist: there is no 'prot' at 'database';
... expected one of 'name', 'port'

# config misfit
class Flow(Workflow):
    @step
    async def begin(
        self, ev: StartEvent, x: Annotated[int, ResourceConfig('app.toml', 'database.name')]
    ) -> StopEvent: ...
await Flow().run(run_id='r')
--> ValueError: app.toml, at 'database.name' does not fit int: Expected `int`, got `str`

"""

SNAPSHOTS = r"""
# no snapshot
Simple().resume({})
--> SnapshotError: this is no snapshot that this version of sluicegate can read (format None);
... expected the dict that handler.snapshot() returned, of format 3

# another workflow
Simple().resume(Waits().run(run_id='r').snapshot())
--> SnapshotError: the snapshot does not fit Simple: it is of 'Waits', and this is 'Simple';
... expected the workflow that it was taken of

# completed
handler = Simple().run(run_id='r')
await handler
Simple().resume(handler.snapshot())
--> WorkflowRuntimeError: the run r was completed when the snapshot was taken; expected one of
... a run under way, or run(ctx=Context.from_dict(workflow, snapshot)) for a new run with its
... state

# lives
async def f(ctx):
    await ctx.store.set('lock', threading.Lock())
    ctx.to_dict()
await Calls(f).run(run_id='r')
--> SnapshotError: the state['lock'] is a lock, which cannot be kept; expected a value of another
... class (an event, an attrs class, a dataclass, a named tuple, an enum, a pydantic model or a
... Struct), or, for a live object (a lock, a socket, a function, a client), a resource:
... Annotated[lock, Resource(make)]

# unknown class
class Money:
    pass
async def f(ctx):
    await ctx.store.set('price', Money())
    ctx.to_dict()
await Calls(f).run(run_id='r')
--> SnapshotError: the state['price'] is a Money, which cannot be kept; expected a value of another
... class (an event, an attrs class, a dataclass, a named tuple, an enum, a pydantic model or a
... Struct), or, for a live object (a lock, a socket, a function, a client), a resource:
... Annotated[Money, Resource(make)]

# goes on with fields
w = Simple()
w.run(ctx=Context.from_dict(w, w.run(run_id='r').snapshot()), topic='x')
--> TypeError: run() was given a start event and the context of an unfinished run; expected
... run(ctx=...) alone, because that run has already started

# tampered
data = Simple().run(run_id='r').snapshot()
data['start'] = {'$': 'os.system', 'v': {}}
Simple().resume(data)
--> SnapshotError: start names 'os.system', which the workflow does not know; expected the
... classes that the snapshot was made with: Workflow(serializable=[...])

# format
Simple().resume({'sluicegate': 99})
--> SnapshotError: this is no snapshot that this version of sluicegate can read (format 99);
... expected the dict that handler.snapshot() returned, of format 3

"""

#: What is expected where no single line would be right: it says so in words, and all are listed.
IN_WORDS = """
expected A or StopEvent
expected StartEvent
expected a Trio nursery, an AnyIO task group, an asyncio.TaskGroup or a workflow_scope
expected a field that it declares
expected a list of objects whose classes are derived from sluicegate.Observer
expected a reachable step that makes A
expected a reachable step that makes B
expected a reachable step that makes Other
expected a separate join for each, with its own event
expected a step to do it
expected a subclass of Workflow
expected a task that the step waits for
expected an attrs class, a dataclass, a pydantic model
expected an event of StartEvent
expected an instance of a subclass of Event
expected an int of at least 1
expected an int of at least 1, or None
expected an object with its fields: {...}
expected another event before the stop
expected another name
expected another name for the step
expected event classes, lists of them, or None
expected fields as annotations, and __attrs_post_init__ for further work with them
expected in_process alone, because a cancelled process is killed
expected it before, because steps are called by position, with only their events and the context
expected one
expected one class for each parameter
expected one class, because a run begins with one event
expected one class, or one derived from the others
expected one of begin, listen
expected one of them to do without the next
expected one or more of begin
expected one or the other
expected only its event
expected seconds above 0
expected seconds above 0, or None
expected seconds above 0, or None for no limit
expected some step to return a StopEvent
expected steps, because a failure in a handler fails the run
expected the step that sent the event to wait
expected the step to return it
expected the step to return, or another run
expected the workflow that it was taken of
which is not int
which is not int: str is not an instance of int
"""

TABLES = {
    "graph": GRAPH,
    "signatures": SIGNATURES,
    "options": OPTIONS,
    "events": EVENTS,
    "handlers": HANDLERS,
    "contexts": CONTEXTS,
    "resources": RESOURCES,
    "snapshots": SNAPSHOTS,
}
CODE = re.compile(r"`[^`]+`|\w+\([^)]*\)|'[^']*'|\[[^\]]*\]")


def cases():
    """Yield each case: its program, its message without the line breaks, and its name."""
    for table, text in TABLES.items():
        for case in text.strip().split("\n\n"):
            program, _, message = case.partition("\n--> ")
            name = program.partition("\n")[0].removeprefix("# ")
            yield pytest.param(program, message.replace("\n... ", " "), id=f"{table}: {name}")


def statements_of(message):
    """Return what a message says: each fault of a list of faults, or the message itself."""
    _, listed, faults = message.partition(": 1. ")
    return re.split(r" \d+\. ", faults) if listed and " fault" in _ else [message]


PRELUDE_CODE = compile(PRELUDE, "prelude", "exec", dont_inherit=True)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of its own for each program, in a directory with a file to configure it."""
    (tmp_path / "app.toml").write_text("[database]\nname = 'x'\nport = 1\n")
    monkeypatch.chdir(tmp_path)
    made = types.ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", made)
    exec(PRELUDE_CODE, vars(made))
    return made


@pytest.mark.slow_for("asyncio")
@pytest.mark.parametrize(("program", "message"), list(cases()))
async def test_message(module, program, message):
    """P13: bad input of this kind gives exactly this error, on every backend."""
    if "tenacity" in program:
        module.tenacity = pytest.importorskip("tenacity")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some leave a run that was never started
        said = await said_by(module, program)
        vars(module).clear()

    assert re.sub(r"0x[0-9a-f]+", "0x...", " ".join(said.split())) == message


async def said_by(module, program):
    """Run a program, and return what it raises; nothing else of it is kept."""
    code = compile(program, "program", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    try:
        result = eval(code, vars(module))
        if inspect.iscoroutine(result):
            await result
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_each_message_holds_three_things():
    """P13: each says what happened, with a name of the program, what was expected, and the fix."""
    for program, message in (case.values for case in cases()):
        words = {*re.findall(r"\w+", program)}
        for statement in statements_of(message):
            happened, expected = re.split(
                r"[;:?] (?=[Ee]xpected )|(?=which is not )", statement, maxsplit=1
            )
            named = {*re.findall(r"\w+", happened.partition("Error: ")[2] or happened)}

            assert words & named, message
            assert CODE.search(expected) or expected in IN_WORDS.split("\n"), message


def test_what_is_said_in_words_is_said_somewhere():
    """The list of what is expected in words has no entry that no message needs."""
    text = " ".join(case.values[1] for case in cases())

    assert [line for line in IN_WORDS.strip().split("\n") if line not in text] == []
