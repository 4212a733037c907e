"""Silent ends: where a step can return None without declaring it, found in its source."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Final, cast

from sluicegate._definition.source import parse


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sluicegate._definition.source import Function
    from sluicegate._definition.steps import Step


#: Functions that never return, and context managers that may leave their block early.
_NEVER_RETURNS: Final = frozenset({"exit", "_exit", "abort", "assert_never"})
_MAY_LEAVE: Final = frozenset({"suppress", "move_on_after", "move_on_at", "CancelScope"})

_INNER: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def silent_end(step: Step) -> str | None:
    """Return where ``step`` can return None, if its signature does not declare that.

    Returns:
        A sentence with the fix; None if the signature allows it, if the step cannot return None,
        or if there is no source.
    """
    if step.may_end:
        return None
    function = parse(inspect.unwrap(step.source))
    if function is None:
        return None
    lines = [node.lineno for node in _returns(function) if _may_be_none(node.value)]
    where = [f"in line {line}" for line in sorted(lines)]
    if _falls(function.body):
        where.append("at its end")
    if not where:
        return None
    made = function.returns
    shown = "..." if made is None else _shown(made)
    return (
        f"the step {step.name} may return None ({', '.join(where)}), which its signature does not "
        f"declare; expected `-> {shown} | None`, or an event there"
    )


def _shown(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation)


def _returns(function: Function) -> Iterator[ast.Return]:
    """Yield the return statements of a function, without those of inner functions."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Return):
            yield node
        if not isinstance(node, _INNER):
            todo += ast.iter_child_nodes(node)


def _may_be_none(value: ast.expr | None) -> bool:
    if value is None:
        return True
    if isinstance(value, ast.Constant):
        return value.value is None
    if isinstance(value, ast.IfExp):
        return _may_be_none(value.body) or _may_be_none(value.orelse)
    if isinstance(value, ast.BoolOp):  # `and` may give any of its parts, `or` its last
        parts = value.values if isinstance(value.op, ast.And) else value.values[-1:]
        return any(map(_may_be_none, parts))
    # `ctx.collect_events` returns None in all invocations but the last.
    return isinstance(value, ast.Call) and _name_of(value.func) == "collect_events"


def _falls(body: Sequence[ast.stmt]) -> bool:
    """Whether the end of a block can be reached."""
    return all(map(_goes_on, body))


def _goes_on(node: ast.stmt) -> bool:  # noqa: PLR0911 - one for each kind of statement
    """Whether the end of a statement can be reached."""
    match node:
        case ast.Return() | ast.Raise() | ast.Break() | ast.Continue():
            return False
        case (
            ast.Expr(value=ast.Call(func=called))
            | ast.Expr(value=ast.Await(value=ast.Call(func=called)))
        ):
            return _name_of(called) not in _NEVER_RETURNS
        case ast.Assert(test=ast.Constant(value=value)):
            return bool(value)
        case ast.If():
            return _falls(node.body) or _falls(node.orelse)
        case ast.While(test=ast.Constant(value=value)) if value:
            return _breaks(node.body)
        case ast.While() | ast.For() | ast.AsyncFor():
            return _falls(node.orelse) or _breaks(node.body)
        case ast.With() | ast.AsyncWith():
            return _falls(node.body) or any(map(_may_leave, node.items))
        case ast.Try() | ast.TryStar():
            return _try_goes_on(cast("ast.Try", node))
        case ast.Match():
            return not _takes_all(node) or any(_falls(case.body) for case in node.cases)
        case _:
            return True


def _try_goes_on(node: ast.Try) -> bool:
    if not _falls(node.finalbody):
        return False
    is_through = _falls(node.body) and _falls(node.orelse)
    return is_through or any(_falls(handler.body) for handler in node.handlers)


def _takes_all(node: ast.Match) -> bool:
    last = node.cases[-1]
    pattern = last.pattern
    return last.guard is None and isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _breaks(body: Sequence[ast.stmt]) -> bool:
    """Whether a ``break`` can leave a loop with this body."""
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Break):
            return True
        if isinstance(node, ast.While | ast.For | ast.AsyncFor):
            todo += node.orelse  # a `break` inside leaves that loop, not this one
        elif not isinstance(node, _INNER):
            todo += ast.iter_child_nodes(node)
    return False


def _may_leave(item: ast.withitem) -> bool:
    expression = item.context_expr
    return isinstance(expression, ast.Call) and _name_of(expression.func) in _MAY_LEAVE


def _name_of(called: ast.expr) -> str:
    if isinstance(called, ast.Attribute):
        return called.attr
    return called.id if isinstance(called, ast.Name) else ""
