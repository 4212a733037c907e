"""The source of a step: the waits, joins, sent and published events and children that it shows.

The source is only read: nothing in it is run. Without a source nothing is found.
"""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import attrs

from sluicegate._annotations import class_of
from sluicegate._events import Event


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

#: How often a name is followed to the expression assigned to it.
HOPS = 4


def parse(function: Callable[..., Any]) -> Function | None:
    """Return the syntax tree of a function, with the line numbers of its file, or None."""
    try:
        lines, first = inspect.getsourcelines(function)
        # An indented method gets a block around it: `dedent` would break texts over several lines.
        is_indented = lines[0][:1].isspace()
        found = ast.parse("".join(["if True:\n", *lines] if is_indented else lines)).body[0]
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None
    if isinstance(found, ast.If):
        found, first = found.body[0], first - 1
    if not isinstance(found, Function):
        return None
    ast.increment_lineno(found, first - 1)
    return found


@attrs.frozen(eq=False)
class ChildCall:
    """A workflow that a step runs as a child.

    Attributes:
        text: The argument as it is written.
        kind: Its class, or None where the source does not show it.
        thing: The object itself, where it exists already.
    """

    text: str
    kind: type | None = None
    thing: object = None


@attrs.frozen(eq=False)
class StepSource:
    """The findings in the source of a step, each in the order of its lines.

    Attributes:
        waits_for: The classes of events that it waits for with ``ctx.wait_for_event``.
        asks: The classes of the questions that it gives to ``ctx.wait_for_event``.
        streamed: The classes of events that it writes to the stream.
        sends_many: The classes of events that it sends several times with ``ctx.send_event``: in a
            loop, or in more than one place.
        collects: The classes of events that it joins with ``ctx.collect_events``, with the number
            of each; None where the source does not show the number.
        children: The workflows that it runs with ``ctx.run_child``.
    """

    waits_for: tuple[type[Event], ...] = ()
    asks: tuple[type[Event], ...] = ()
    streamed: tuple[type[Event], ...] = ()
    sends_many: tuple[type[Event], ...] = ()
    collects: tuple[tuple[type[Event], int | None], ...] = ()
    children: tuple[ChildCall, ...] = ()


def read_source(
    function: Callable[..., Any], owner: object = None, more: Mapping[str, Any] | None = None
) -> StepSource:
    """Read the source of a step.

    Only calls in the function itself are found. An event is found only if its class can be seen:
    ``ctx.write_event_to_stream(X(...))``, or a name that ``X(...)`` was assigned to. A child is
    the argument of ``run_child``: ``Child(...)``, such a name, an annotated parameter, or an
    attribute that the class body or ``__init__`` assigns in the same way. A method is also found
    as an argument of another call: ``nursery.start_soon(ctx.run_child, Child())``.

    Args:
        function: The step as it was written.
        owner: The workflow class, or an object of it, in which ``self`` is looked up.
        more: Further names and their values, such as those that only annotations use.
    """
    function = inspect.unwrap(function)
    tree = parse(function)
    if tree is None:
        return StepSource()
    names = Names(function, tree, owner, more or {})
    calls = _calls(tree)
    children: dict[tuple[object, ...], ChildCall] = {}
    for call in calls:
        for argument in _arguments_of("run_child", "workflow", call):
            for child in _children(argument, names):
                shown = (child.text,) if child.kind is None else (child.kind, id(child.thing))
                children.setdefault(shown, child)
    return StepSource(
        waits_for=_events(
            kind
            for call in calls
            for argument in _arguments_of("wait_for_event", "event_type", call)
            for kind in names.classes_of(argument)
        ),
        asks=_events(kind for call in calls for kind in _asked(call, names)),
        streamed=_events(
            kind
            for call in calls
            if call.args and _writes_to_stream(call.func)
            for kind in _made_in(call.args[0], names)
        ),
        sends_many=_sent_many_times(tree, calls, names),
        collects=tuple(_collected(calls, names).items()),
        children=tuple(children.values()),
    )


def _events(kinds: Iterable[type]) -> tuple[type[Event], ...]:
    """Return the classes of events among ``kinds``, each once."""
    return tuple(dict.fromkeys(kind for kind in kinds if issubclass(kind, Event)))


def _made_in(value: ast.expr, names: Names) -> Iterator[type]:
    return (made.kind for made in names.made_by(value) if made is not None)


def _asked(call: ast.Call, names: Names) -> Iterator[type]:
    """Yield the classes of the question that a call of ``ctx.wait_for_event`` publishes."""
    if _is_method("wait_for_event", call.func):
        for argument in _argument(call, 1, "waiter_event"):
            yield from _made_in(argument, names)


def _argument(call: ast.Call, place: int, keyword: str) -> Iterator[ast.expr]:
    yield from call.args[place : place + 1]
    yield from (word.value for word in call.keywords if word.arg == keyword)


def _sent_many_times(tree: ast.AST, calls: list[ast.Call], names: Names) -> tuple[type[Event], ...]:
    repeated = {call for body in _loop_bodies(tree) for call in _calls(body)}
    times: dict[type, int] = {}
    for call in calls:
        if _is_method("send_event", call.func):
            for argument in _argument(call, 0, "event"):
                for kind in dict.fromkeys(_made_in(argument, names)):
                    times[kind] = times.get(kind, 0) + (2 if call in repeated else 1)
    return _events(kind for kind, count in times.items() if count > 1)


def _loop_bodies(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a function that run once for each turn of a loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            yield from node.body
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            yield node.elt
        elif isinstance(node, ast.DictComp):
            yield from (node.key, node.value)


def _collected(calls: list[ast.Call], names: Names) -> dict[type[Event], int | None]:
    """Return the classes that ``ctx.collect_events`` joins, with the greatest number of each."""
    found: dict[type[Event], int | None] = {}
    for call in calls:
        if not _is_method("collect_events", call.func):
            continue
        counts: dict[type[Event], int | None] = {}
        for argument in _argument(call, 1, "expected"):
            for item, count in _items(argument, names):
                for kind in names.classes_of(item):
                    if issubclass(kind, Event):
                        before = counts.get(kind, 0)
                        counts[kind] = None if before is None or count is None else before + count
        for kind, count in counts.items():
            before = found.get(kind, 0)
            found[kind] = None if before is None or count is None else max(before, count)
    return found


def _items(
    value: ast.expr, names: Names, hops: int = HOPS
) -> Iterator[tuple[ast.expr, int | None]]:
    """Yield the elements of a list that the source shows, with their numbers.

    ``[A, B]``, ``[A] * 3``, ``[A] * len(parts)``, ``[A for _ in parts]``, ``[*kinds, A]``, sums of
    these, and a name that one of them is assigned to.
    """
    match value:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                if isinstance(item, ast.Starred):
                    yield from _items(item.value, names, hops)
                else:
                    yield item, 1
        case ast.BinOp(left=ast.List() | ast.Tuple() as left, op=ast.Mult(), right=times):
            count = times.value if isinstance(times, ast.Constant) else None
            for item in left.elts:
                yield item, count if isinstance(count, int) else None
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from _items(left, names, hops)
            yield from _items(right, names, hops)
        case ast.ListComp(elt=item):
            yield item, None
        case ast.Name(id=name) if hops:  # `kinds = kinds + [A]` would never end
            for assigned in names.assigned(name):
                yield from _items(assigned, names, hops - 1)
        case _:
            pass


def _calls(tree: ast.AST) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _arguments_of(method: str, keyword: str, call: ast.Call) -> Iterator[ast.expr]:
    """Yield the first arguments that a call gives to a method of the context.

    In ``nursery.start_soon(ctx.run_child, Child())`` the next argument is the method's first.
    """
    if _is_method(method, call.func):
        yield from call.args[:1]
        yield from (word.value for word in call.keywords if word.arg == keyword)
    for place, argument in enumerate(call.args[:-1]):
        if _is_method(method, argument):
            yield call.args[place + 1]


def _is_method(method: str, called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and called.attr == method


def _writes_to_stream(called: ast.expr) -> bool:
    if not isinstance(called, ast.Attribute):
        return False
    is_send = called.attr in ("send", "send_nowait") and _is_method("stream", called.value)
    return is_send or called.attr == "write_event_to_stream"


def _children(argument: ast.expr, names: Names) -> Iterator[ChildCall]:
    text = " ".join(ast.unparse(argument).split())
    for made in tuple(names.made_by(argument)) or (None,):
        is_known = made is not None and _is_workflow(made.kind)
        yield ChildCall(text, made.kind, made.thing) if made and is_known else ChildCall(text)


def _is_workflow(kind: type) -> bool:
    # The class of all workflows is in a higher layer; its module identifies it.
    return any(base.__module__ == "sluicegate._workflow" for base in kind.__mro__[1:])


# -- names -----------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Made:
    """The value of an expression: an object of ``kind``, and the object if it already exists."""

    kind: type
    thing: object = None


class Names:
    """The names of one function and their values, as far as the source shows them.

    The value of a name that the function assigns is the assigned expression. A name that is bound
    in another way, by a loop or an import, is unknown. All others are names of its closure or
    module.
    """

    def __init__(
        self, function: Callable[..., Any], tree: ast.AST, owner: object, more: Mapping[str, Any]
    ) -> None:
        self._owner = owner
        self._visible: dict[str, Any] = {**more, **_visible_names(function)}
        self._parameters: dict[str, ast.expr | None] = _parameters(tree)
        self._self: str | None = next(iter(self._parameters), None)
        self._assigned: dict[str, list[ast.expr]] = {}
        self._attributes: list[tuple[ast.Attribute, ast.expr]] = []
        plain: set[ast.Name] = set()
        for target, value in _assignments(tree):
            if isinstance(target, ast.Name):
                plain.add(target)
                self._assigned.setdefault(target.id, []).append(value)
            elif isinstance(target, ast.Attribute):
                self._attributes.append((target, value))
        self._unclear: set[str] = _otherwise_bound(tree, plain)

    def made_by(self, value: ast.expr, hops: int = HOPS) -> Iterator[Made | None]:
        """Yield the possible values of an expression; None for one that is unknown."""
        if isinstance(value, ast.Call):
            for thing in self._things(value.func, hops):
                yield Made(thing) if isinstance(thing, type) else None
        elif isinstance(value, ast.Name) and not self._is_own(value.id):
            yield _made_already(self._visible.get(value.id))
        elif isinstance(value, ast.Name):
            yield from self._made_by_own(value.id, hops)
        elif self._is_of_self(value):
            yield from self._made_by_attribute(value.attr, hops)
        elif isinstance(value, ast.Attribute):
            for thing in self._things(value, hops):
                yield _made_already(thing)
        else:
            parts = _alternatives(value)
            for part in parts:
                yield from self.made_by(part, hops)
            if not parts:
                yield None

    def classes_of(self, value: ast.expr) -> Iterator[type]:
        """Yield the classes that ``value`` can be, a generic one without its arguments."""
        for thing in self._things(value, HOPS):
            plain = class_of(thing)
            if isinstance(plain, type):
                yield plain

    def assigned(self, name: str) -> list[ast.expr]:
        """Return the expressions that this function assigns to a name."""
        return self._assigned.get(name, [])

    def assigned_to_self(self, attribute: str) -> list[ast.expr]:
        """Return the expressions that this function assigns to an attribute of ``self``."""
        return [v for t, v in self._attributes if self._is_of_self(t) and t.attr == attribute]

    def _is_own(self, name: str) -> bool:
        return name in self._assigned or name in self._unclear or name in self._parameters

    def _is_of_self(self, value: ast.expr) -> TypeGuard[ast.Attribute]:
        return (
            isinstance(value, ast.Attribute)
            and isinstance(value.value, ast.Name)
            and value.value.id == self._self
        )

    def _made_by_own(self, name: str, hops: int) -> Iterator[Made | None]:
        if not hops:  # `event = event` would never end
            return
        for value in self._assigned.get(name, ()):
            yield from self.made_by(value, hops - 1)
        if name in self._unclear:
            yield None
        if name in self._parameters:
            note = self._parameters[name]
            kinds = list(self._classes_of_note(note)) if note is not None else []
            yield from (Made(kind) for kind in kinds)
            if not kinds and name not in self._assigned:
                yield None

    def _made_by_attribute(self, attribute: str, hops: int) -> Iterator[Made | None]:
        """Yield the values of an attribute of ``self``: of the object, the class or ``__init__``."""
        found = _static(self._owner, attribute)
        if found is not None:
            yield _made_already(found)
            return
        kind = self._owner if isinstance(self._owner, type) else type(self._owner)
        for base in kind.__mro__ if hops else ():
            init = vars(base).get("__init__")
            tree = parse(init) if inspect.isfunction(init) else None
            if inspect.isfunction(init) and tree is not None:
                names = Names(init, tree, self._owner, {})
                values = names.assigned_to_self(attribute)
                for value in values:
                    yield from names.made_by(value, hops - 1)
                if values:
                    return
        yield None

    def _things(self, value: ast.expr, hops: int) -> Iterator[Any]:
        """Yield the existing objects that an expression can be; None for everything else."""
        if self._is_of_self(value):
            yield _static(self._owner, value.attr)
        elif isinstance(value, ast.Attribute):
            # A static lookup: a property of a module or class is not run to draw a picture.
            for owner in self._things(value.value, hops):
                yield _static(owner, value.attr)
        elif isinstance(value, ast.Subscript):  # `Child[str](...)`
            yield from self._things(value.value, hops)
        elif isinstance(value, ast.Name):
            yield from self._things_of_name(value.id, hops)
        else:
            parts = _alternatives(value)
            for part in parts:
                yield from self._things(part, hops)
            if not parts:
                yield None

    def _things_of_name(self, name: str, hops: int) -> Iterator[Any]:
        if not self._is_own(name):
            yield self._visible.get(name)
        elif name not in self._assigned or name in self._unclear:
            yield None
        for assigned in self._assigned.get(name, ()) if hops else ():
            yield from self._things(assigned, hops - 1)

    def _classes_of_note(self, note: ast.expr) -> Iterator[type]:
        """Yield the classes that the annotation of a parameter names."""
        if isinstance(note, ast.Constant) and isinstance(note.value, str):
            try:
                note = ast.parse(note.value, mode="eval").body
            except SyntaxError:
                return
        if isinstance(note, ast.BinOp):
            yield from self._classes_of_note(note.left)
            yield from self._classes_of_note(note.right)
        elif isinstance(note, ast.Subscript) and _last_name(note.value) == "Annotated":
            first = note.slice.elts[0] if isinstance(note.slice, ast.Tuple) else note.slice
            yield from self._classes_of_note(first)
        else:
            yield from (thing for thing in self._things(note, 0) if isinstance(thing, type))


def _made_already(thing: object) -> Made | None:
    if thing is None or isinstance(thing, type):
        return None
    return Made(type(thing), thing)


def _static(owner: Any, name: str) -> Any:
    return None if owner is None else inspect.getattr_static(owner, name, None)


def _last_name(value: ast.expr) -> str:
    return ast.unparse(value).rpartition(".")[2]


def _alternatives(value: ast.expr) -> list[ast.expr]:
    """Return the expressions that ``value`` chooses from."""
    if isinstance(value, ast.NamedExpr):
        return [value.value]
    if isinstance(value, ast.IfExp):
        return [value.body, value.orelse]
    return value.values if isinstance(value, ast.BoolOp) else []


def _parameters(tree: ast.AST) -> dict[str, ast.expr | None]:
    """Return the parameters of a function, and of functions inside it, with their annotations."""
    return {
        node.arg: node.annotation
        for function in ast.walk(tree)
        if isinstance(function, ast.arguments)
        for node in ast.walk(function)
        if isinstance(node, ast.arg)
    }


def _assignments(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target of an assignment of one expression, with that expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield target, node.value
        elif isinstance(node, ast.NamedExpr | ast.AnnAssign) and node.value is not None:
            yield node.target, node.value


def _otherwise_bound(tree: ast.AST, plain: set[ast.Name]) -> set[str]:
    """Return the names that a function binds to values that its source does not show."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            plain.add(node.target)  # `child: Child` alone binds nothing
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in plain:
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def _visible_names(function: Callable[..., Any]) -> dict[str, Any]:
    names: dict[str, Any] = dict(getattr(function, "__globals__", {}))
    code = getattr(function, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(function, "__closure__", None) or (), strict=False
    ):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    return names
