"""Labels: the names of events with their fields, and the marks of a step."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, get_origin

import attrs

from sluicegate._definition.steps import StepOptions
from sluicegate._events import is_open
from sluicegate._loop.limits import RateLimiter, RateLimiterPortion
from sluicegate.drawing._execution import shown_seconds


if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluicegate._definition.source import StepSource
    from sluicegate._definition.steps import Step
    from sluicegate._events import Event
    from sluicegate.drawing._execution import StepCounts


#: A join that names more than this says only how many classes it joins.
LONGEST_JOIN = 34


@attrs.frozen
class Label:
    """The name of an event, as shown at an arrow or on a note.

    Attributes:
        text: The name, or ``list[Name]``.
        fields: Its fields with their types: ``"text: str"``.
        kind: Its class; None for text that is no event's name.
        about: The tooltip of text that is no event's name.
        is_many: Whether several events take this way: a list, or one after another.
        count: How many such events passed in the execution that is shown; None without one.
    """

    text: str
    fields: tuple[str, ...] = ()
    kind: type[Event] | None = attrs.field(default=None, eq=False, repr=False)
    about: str = ""
    is_many: bool = False
    count: int | None = None

    @property
    def title(self) -> str:
        """The tooltip: the name and the fields."""
        if self.about:
            return self.about
        seen = "" if self.count is None else f" ({self.count} in this run)"
        return "\n".join((f"{self.text}{seen}", *(f"  {field}" for field in self.fields)))

    @property
    def shown(self) -> str:
        """The text with the count, if there is one."""
        return self.text if self.count is None else f"{self.text} {self.count:,}"

    @property
    def drawn(self) -> str:
        """The same for a picture, in which a line that no event passed looks different."""
        return self.shown if self.count else self.text


def label_of(kind: type[Event], *, many: bool = False, is_repeated: bool = False) -> Label:
    """Return the label of an event class, or that of a list, or of events sent repeatedly."""
    name = f"list[{kind.__name__}]" if many else kind.__name__
    return Label(name, tuple(_fields(kind)), kind, is_many=many or is_repeated)


def _fields(kind: type[Event]) -> Iterator[str]:
    for field in attrs.fields(kind):
        kind_of_value = (
            "" if field.type is None else f": {_without_modules(_type_name(field.type))}"
        )
        default = "" if field.default is attrs.NOTHING else " = ..."
        yield f"{field.alias}{kind_of_value}{default}"
    if is_open(kind):
        yield "any field"


def _type_name(hint: Any) -> str:
    """Return a type as it is written in source, the same in every process."""
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return _without_addresses(text).replace("typing.", "")


def _without_modules(text: str) -> str:
    """Return a type without the modules of its names; strings in it are left as they are."""
    return re.sub(r"'[^']*'|\b(?:[A-Za-z_]\w*\.)+(?=\w)", _text_or_nothing, text)


def _text_or_nothing(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith("'") else ""


def short_name(hint: Any) -> str:
    """Return a type without its module."""
    return hint.__name__ if isinstance(hint, type) else _type_name(hint)


def _without_addresses(text: str) -> str:
    """Return ``text`` without the addresses of objects, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def describe(step: Step) -> str:
    """Return the events that a step takes and makes, and the first line of its docstring."""
    taken = [kind.__name__ for kind in step.accepts]
    made = [kind.__name__ for kind in step.returns]
    made += [f"list[{kind.__name__}]" for kind in step.fans_out]
    made += ["None"] if step.may_end else []
    shape = {"list": f"list[{' | '.join(taken)}]", "slot": " and ".join(taken)}
    takes = shape.get(step.takes, " | ".join(taken))
    told = f"{step.name}: takes {takes}, makes {' | '.join(made) or 'nothing'}"
    summary = first_line(step.source.__doc__)
    return f"{told}\n{summary}" if summary else told


def first_line(doc: str | None) -> str:
    """Return the first line of a docstring, or nothing."""
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""


# -- the marks of a step --------------------------------------------------------------------------


@attrs.frozen
class Mark:
    """One sign in the box of a step.

    Attributes:
        kind: The kind of sign.
        text: The text beside the sign, or nothing.
        title: The tooltip.
    """

    kind: str
    text: str
    title: str


#: What holds for a step unless its decorator says otherwise.
_DEFAULT_WORKERS = StepOptions().num_workers
_HANDLER_WORKERS = 1


def marks_of(step: Step, source: StepSource, state_type: type | None) -> tuple[Mark, ...]:
    """Return the marks of a step of a workflow with the given state, in reading order.

    An option that has its default has no mark.
    """
    return (
        *_times(step),
        *_join(step),
        *_collects(source),
        *_place(step),
        *_limits(step),
        *_needs(step),
        *_state(step.signature.state, state_type),
    )


def _times(step: Step) -> Iterator[Mark]:
    options = step.options
    default = _DEFAULT_WORKERS if options.catches is None else _HANDLER_WORKERS
    if step.num_workers != default:
        many = f"At most {step.num_workers} at a time (num_workers)"
        yield Mark("workers", f"×{step.num_workers}", many)  # noqa: RUF001 - a times sign
    if step.timeout is not None:
        text = f"{step.timeout:g} s"
        yield Mark("timeout", text, f"Each invocation may take {text} (timeout)")
    if options.idle_timeout is not None:
        text = f"{options.idle_timeout:g} s"
        yield Mark("idle", text, f"May be without progress for {text} (idle_timeout)")
    if options.retry is not None:
        # A stop of tenacity, or a function, has no number to show.
        stop = options.retry.stop
        text = f"{stop} tries" if isinstance(stop, int) else "retries"
        told = _without_addresses(repr(options.retry))
        yield Mark("retry", text, f"Tried again after a failure: {told}")


def _join(step: Step) -> Iterator[Mark]:
    if step.takes == "list" and step.take is not None:
        title = f"Runs with the first {step.take} events of a fan-out, and cancels the rest"
        yield Mark("join", f"takes first {step.take}", title)
    elif step.takes == "list":
        yield Mark("join", "joins all", "Runs once, with all events of a fan-out")
    elif step.takes == "slot":
        yield Mark("join", "one of each", "Runs when one event of each class is there")


def _collects(source: StepSource) -> Iterator[Mark]:
    if not source.collects:
        return
    parts = [
        kind.__name__ if count == 1 else f"{'n' if count is None else count} {kind.__name__}"
        for kind, count in source.collects
    ]
    text = f"collects {' + '.join(parts)}"
    if len(text) > LONGEST_JOIN:
        text = f"collects {len(parts)} classes"
    title = f"Continues with a complete set: {', '.join(parts)} (ctx.collect_events)"
    yield Mark("join", text, title)


def _place(step: Step) -> Iterator[Mark]:
    if step.runs_in == "thread":
        left = ", left behind when cancelled" if step.options.abandon_on_cancel else ""
        yield Mark("thread", "thread", f"Runs in a worker thread{left}")
    elif step.runs_in == "process":
        yield Mark("process", "process", "Runs in a worker process")


def _limits(step: Step) -> Iterator[Mark]:
    limiter, catches = step.options.limiter, step.options.catches
    if limiter is not None:
        # The repr of most limiters shows their current use or their address in memory.
        is_plain = isinstance(limiter, RateLimiter | RateLimiterPortion)
        told = repr(limiter) if is_plain else type(limiter).__name__
        yield Mark("limiter", "limited", f"Entered around each invocation: {told}")
    if catches is not None and catches.max_recoveries > 1:
        text = f"recovers {catches.max_recoveries}"
        title = f"Handles at most {catches.max_recoveries} failures among the events that one event led to"
        yield Mark("recoveries", text, f"{title} (max_recoveries)")


def _needs(step: Step) -> Iterator[Mark]:
    if step.resources:
        wanted = {position: name for position, name, _ in step.signature.resources}
        told = [f"{wanted[at]}: {plan.name}, one per {plan.scope}" for at, plan in step.resources]
        text = ", ".join(dict.fromkeys(plan.name for _, plan in step.resources))
        yield Mark("resources", text, "\n".join(("Resources", *told)))


def _state(state: Any, state_type: type | None) -> Iterator[Mark]:
    if state is None or state is Any:
        return
    name = short_name(state)
    plain = get_origin(state) or state
    # The picture names the workflow's own state once; only a different one is named here.
    yield Mark("state", "" if plain is state_type else name, f"Uses the state {_type_name(state)}")


def marks_of_counts(counts: StepCounts) -> tuple[Mark, ...]:
    """Return the marks for the outcomes of a step's invocations in an execution."""
    if not counts.started:
        return (Mark("never", "never ran", "No invocation of this step started"),)
    told = {
        "completed": (counts.completed, "Invocations that returned"),
        "failed": (counts.failed, "Invocations that raised, after their last attempt"),
        "cancelled": (counts.cancelled, "Invocations that were cancelled"),
        "running": (counts.running, "Invocations that have not ended"),
    }
    marks = [Mark(kind, f"{count:,}", title) for kind, (count, title) in told.items() if count]
    if counts.retried:
        marks.append(Mark("retried", f"{counts.retried:,} retried", "Attempts after the first"))
    spent = shown_seconds(counts.seconds)
    return (*marks, Mark("spent", spent, f"{spent} from start to end, over all invocations"))
