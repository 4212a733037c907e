"""Snapshots as plain data: values become JSON and come back with their types, by a closed codec.

What JSON has is written as it is. Everything else is a tagged object, ``{"$": name, "v": ...}``:
the name is a built-in's or that of a class that was handed to the codec. No name in the data is
imported, and no constructor of a user's class is called (``msgspec.Struct`` is the exception).
"""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import attrs

from penstock._codec.forms import form_of, origin_of, parts_of, refuse_value, unset_row
from penstock._codec.rows import (
    MAX_DEPTH,
    TAG,
    MismatchError,
    Row,
    TooDeepError,
    content_of,
    encode_float,
    encode_int,
    encode_str,
    is_text,
    refuse_content,
    refuse_misfit,
    reported,
    rows,
    shown,
)
from penstock._codec.rows import (
    RestoredError as RestoredError,
)
from penstock._codec.rows import (
    SnapshotError as SnapshotError,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from penstock._codec.forms import Form

    Encode: TypeAlias = Callable[[Any, int], Any]
    Decode: TypeAlias = Callable[[dict[str, Any]], Any]


_ATOMS = frozenset({str, int, float, bool, type(None)})
_NO_STACK = "is nested too deeply for what is left of the stack; expected flatter values"


def _as_is(value: Any, _depth: int) -> Any:
    return value


def _write_names(values: dict[str, Any]) -> dict[str, Any]:
    """Write an object whose keys may be any text; its values are written already."""
    if all(name != TAG and is_text(name) for name in values):
        return values
    return {TAG: "dict", "v": [[encode_str(name, 0), part] for name, part in values.items()]}


class _Encoders(dict[type, "Encode"]):
    """How each class is written; what is not there is an exception or is refused."""

    def __missing__(self, cls: type) -> Encode:
        return self[BaseException] if issubclass(cls, BaseException) else refuse_value


class Codec:
    """Turns values into plain JSON data and back, for a fixed set of classes.

    Kept with their types are the built-in values and containers, what ``datetime``, ``decimal``,
    ``fractions``, ``uuid``, ``pathlib``, ``collections`` (``deque``, ``OrderedDict``, ``Counter``)
    and ``zoneinfo`` define, and instances of the known classes: events with their open fields,
    attrs classes, dataclasses, named tuples, enums (by name; flags by value), pydantic models and
    ``msgspec.Struct``. Exceptions become `RestoredError`. The state of an instance is set as it
    was: no constructor, validator or ``__post_init__`` runs, except that of a ``Struct``.
    ``functools.cached_property`` is not kept.

    Identity is not kept: what two values shared they hold twice afterwards.

    Both directions check the fields of an instance against their annotations, so that what can
    be written can be read. The check looks at the class of the value itself, not at what a
    container holds; an annotation that cannot be resolved is not checked.

    A codec does not change: tasks and threads may share it. No method is a checkpoint.

    Args:
        classes: The classes whose instances may be written and read. Of a generic alias it is the
            class that counts. Built-in types that are kept anyway are allowed.

    Raises:
        SnapshotError: A class is of no kind that can be kept, or two different classes have the
            same module and name.
    """

    def __init__(self, classes: Iterable[type]) -> None:
        self._encoders = _Encoders(
            {
                type(None): _as_is,
                bool: _as_is,
                int: encode_int,
                float: encode_float,
                str: encode_str,
            }
        )
        self._encoders[list] = self._encode_list
        self._encoders[dict] = self._encode_dict
        self._decoders: dict[str, Decode] = {"dict": self._decode_pairs}
        for row in (*rows(), *unset_row()):
            if row.cls not in _ATOMS:
                self._encoders[row.cls] = self._row_encoder(row)
            self._decoders[row.tag] = self._row_decoder(row)
        origins = dict.fromkeys(origin_of(cls) for cls in classes)
        known = [cls for cls in origins if cls not in self._encoders]
        shared = Counter([*self._decoders, *(cls.__qualname__ for cls in known)])
        for cls in known:
            self._add(cls, unique=shared[cls.__qualname__] == 1)
        self._names = [cls.__qualname__ for cls in known]

    @classmethod
    def of(cls, roots: Iterable[type], extra: Iterable[type] = ()) -> Codec:
        """Make a codec for some classes and all that the annotations of their fields lead to.

        Annotations are followed through unions, containers, ``Annotated``, type variables and
        aliases. Subclasses are not found this way; nor is what an annotation names that cannot be
        resolved at run time. Both are named in ``extra``.

        Args:
            roots: Where to begin. A root of a kind that cannot be kept is left out; a value of it
                is refused when it is to be written.
            extra: Further classes, for what the annotations do not tell. These must be of a kind
                that can be kept.

        Raises:
            SnapshotError: As for the constructor.
        """
        named = [origin_of(kind) for kind in extra]
        found = dict.fromkeys(named)
        seen: set[int] = set()
        todo: list[Any] = [*roots, *named]
        kept: list[Any] = []  # alive, so that no id is used twice
        while todo:
            hint = todo.pop()
            if id(hint) in seen:
                continue
            seen.add(id(hint))
            kept.append(hint)
            todo += parts_of(hint)
            if isinstance(hint, type) and form_of(hint) is not None:
                found[hint] = None
        return cls(found)

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as plain data: dicts with str keys, lists, str, int, float, bool, None.

        The data is new and shares nothing that can change with the value. It is what ``json``
        and ``msgspec`` take: integers have 64 bits, floats are finite, text is UTF-8. The order
        of keys matters.

        Args:
            value: What is to be kept.
            path: How messages call the value, such as ``"event Draft"``.

        Raises:
            SnapshotError: Something in the value cannot be kept: an instance of an unknown class,
                a live object, a field that does not fit its annotation, a circle, more than 100
                levels. The message names the way to it.
        """
        try:
            return self._encoders[type(value)](value, 0)
        except MismatchError as fault:
            raise fault.told(path) from fault.__cause__
        except RecursionError:
            raise MismatchError(_NO_STACK).told(path) from None

    def decode(self, data: Any, path: str) -> Any:
        """Return the value that `encode` made ``data`` of.

        Args:
            data: Plain data. It is not changed, and shares nothing that can change with the value.
            path: How messages call the value, such as ``"event Draft"``.

        Raises:
            SnapshotError: The data is not what `encode` makes: an unknown tag or class, a missing
                or unknown field, a field that does not fit its annotation, a wrong type of JSON.
                The message names the way to it.
        """
        try:
            return self._decode(data)
        except MismatchError as fault:
            raise fault.told(path) from fault.__cause__
        except RecursionError:
            raise MismatchError(_NO_STACK).told(path) from None

    def __repr__(self) -> str:
        return f"<Codec of {len(self._names)} classes>"

    # -- writing ----------------------------------------------------------------------------

    def _encode_list(self, value: list[Any], depth: int) -> list[Any]:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        encoders = self._encoders
        made: list[Any] = []
        try:
            for item in value:
                made.append(encoders[type(item)](item, depth + 1))  # noqa: PERF401 - see below
        except MismatchError as fault:
            fault.passed(f"[{len(made)}]", value)  # the length tells which item it was
            raise
        return made

    def _encode_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        encoders = self._encoders
        items = list(value.items())  # at once: a thread may be writing to the dict
        plain = all(type(key) is str and key != TAG and is_text(key) for key, _ in items)
        pairs: list[Any] = []
        part = ""
        try:
            for number, (key, item) in enumerate(items):
                part = f".keys()[{number}]"
                written = key if plain else encoders[type(key)](key, depth + 1)
                part = f"[{shown(key)}]"
                pairs.append((written, encoders[type(item)](item, depth + 1)))
        except MismatchError as fault:
            fault.passed(part, value)
            raise
        return dict(pairs) if plain else {TAG: "dict", "v": [list(pair) for pair in pairs]}

    def _row_encoder(self, row: Row) -> Encode:
        encoders, tag, split = self._encoders, row.tag, row.split

        def encode(value: Any, depth: int) -> dict[str, Any]:
            try:
                parts = [encoders[type(part)](part, depth) for part in split(value)]
            except MismatchError as fault:
                fault.passed("", value)
                raise
            return {TAG: tag, "v": parts[0] if len(parts) == 1 else parts}

        return encode

    def _object_encoder(self, form: Form, tag: str) -> Encode:
        encoders, kinds, read = self._encoders, form.kinds, form.read
        count, ignored = len(kinds), form.ignored

        def encode(value: Any, depth: int) -> dict[str, Any]:
            if depth >= MAX_DEPTH:
                raise TooDeepError
            made: dict[str, Any] = {}
            rest: dict[str, Any] = {}
            name = ""
            try:
                for name, item in read(value).items():
                    allowed = kinds.get(name)
                    if allowed is not None:
                        if not isinstance(item, allowed):
                            refuse_misfit(item, allowed)
                        made[name] = encoders[type(item)](item, depth + 1)
                    elif name not in ignored:
                        if not form.more:
                            form.refuse_name()
                        rest[name] = encoders[type(item)](item, depth + 1)
            except MismatchError as fault:
                fault.passed(f".{name}", value)
                raise
            if len(made) < count:
                form.check_complete(made)
            data = {TAG: tag, "v": made}
            return {**data, "x": _write_names(rest)} if rest else data

        return encode

    # -- reading ----------------------------------------------------------------------------

    def _decode(self, data: Any) -> Any:
        kind: Any = cast("Any", type(data))
        if kind in _ATOMS:
            return data
        if kind is list:
            return self._decode_list(data)
        if kind is not dict:
            msg = f"is a {kind.__name__}, which JSON does not have; expected data made by encode()"
            raise MismatchError(msg)
        if TAG not in data:
            return self._decode_dict(data)
        tag = data[TAG]
        decode = self._decoders.get(tag) if type(tag) is str else None
        return self._refuse_tag(tag) if decode is None else decode(data)

    def _decode_dict(self, data: dict[Any, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        key: Any = ""
        try:
            for key, item in data.items():
                if type(key) is not str:
                    refuse_content(f"the key is {shown(key)} in place of a str")
                made[key] = self._decode(item)
        except MismatchError as fault:
            fault.passed(f"[{shown(key)}]", data)
            raise
        return made

    def _decode_list(self, data: Any) -> list[Any]:
        made: list[Any] = []
        if type(data) is not list:
            refuse_content(f"it holds {shown(data)} in place of a list")
        try:
            for item in cast("list[Any]", data):
                made.append(self._decode(item))  # noqa: PERF401 - the length tells which it was
        except MismatchError as fault:
            fault.passed(f"[{len(made)}]", cast("Any", data))
            raise
        return made

    def _decode_pairs(self, data: dict[str, Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for number, pair in enumerate(self._decode_list(content_of(data))):
            parts = cast("list[Any]", pair if type(pair) is list else [])
            if len(parts) != 2:
                refuse_content(f"item {number} is not a list of a key and a value")
            key, item = parts
            with reported():
                made[key] = item
            if len(made) != number + 1:
                refuse_content(f"the key of item {number} is there twice")
        return made

    def _row_decoder(self, row: Row) -> Decode:
        shape, split, join = row.shape, row.split, row.join

        def decode(data: dict[str, Any]) -> Any:
            content = content_of(data)
            parts: list[Any] = (
                [self._decode(content)] if len(shape) == 1 else self._decode_list(content)
            )
            fits = len(parts) == len(shape) and all(
                type(part) in allowed for part, allowed in zip(parts, shape, strict=True)
            )
            if not fits:
                wanted = ", ".join(" or ".join(t.__name__ for t in allowed) for allowed in shape)
                refuse_content(f"a {row.tag} of {shown(content)} in place of {wanted}")
            with reported():
                made = join(*parts)
                good = not row.exact or split(made) == tuple(parts)
            if not good:
                refuse_content(f"{shown(content)} is not how a {row.tag} is written")
            return made

        return decode

    def _object_decoder(self, form: Form) -> Decode:
        kinds, build, count = form.kinds, form.build, len(form.kinds)

        def decode(data: dict[str, Any]) -> Any:
            content, rest = data.get("v"), None
            if type(content) is not dict or len(data) != 2:
                content, rest = self._open(form, data)
            made: dict[str, Any] = {}
            name: Any = ""
            try:
                for name, item in cast("dict[Any, Any]", content).items():
                    allowed = kinds.get(name)
                    if allowed is None:
                        form.refuse_name()
                    if type(item) not in _ATOMS:
                        item = self._decode(item)
                    if not isinstance(item, allowed):
                        refuse_misfit(item, allowed)
                    made[name] = item
            except MismatchError as fault:
                fault.passed(f".{name}", cast("object", content))
                raise
            if len(made) < count:
                form.check_complete(made)
            return build(made, rest or {})

        return decode

    def _open(self, form: Form, data: dict[str, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
        """Return the fields as they are in the data, and the other attributes."""
        rest: Any = self._decode(data["x"]) if "x" in data else {}
        content = content_of({key: part for key, part in data.items() if key != "x"})
        if type(content) is not dict:
            refuse_content(f"a {form.cls.__name__} of {shown(content)} in place of an object")
        if type(rest) is not dict:
            refuse_content(f"'x' is {shown(rest)} in place of an object")
        for name in cast("dict[Any, Any]", rest):
            if type(name) is not str or name in form.kinds:
                refuse_content(f"'x' has the key {shown(name)}, which is no other attribute's name")
        if rest and not form.more:
            refuse_content(f"{form.cls.__name__} has no other attributes than its fields")
        return cast("Any", content), cast("Any", rest)

    # -- classes ----------------------------------------------------------------------------

    def _add(self, cls: type, *, unique: bool) -> None:
        """Learn a class, by its full name and, where no other has it, by its short one."""
        full = f"{cls.__module__}:{cls.__qualname__}"
        if full in self._decoders:
            msg = f"two different classes are {full}; expected one, or another name for one of them"
            raise SnapshotError(msg)
        tag = cls.__qualname__ if unique else full
        form = form_of(cls)
        if form is None:
            msg = (
                f"{full} cannot be kept in a snapshot; expected an event, an attrs class, a "
                "dataclass, a named tuple, an enum, a pydantic model or a msgspec.Struct"
            )
            raise SnapshotError(msg)
        decode: Decode
        if isinstance(form, Row):
            row = attrs.evolve(form, tag=tag)
            self._encoders[cls], decode = self._row_encoder(row), self._row_decoder(row)
        else:
            self._encoders[cls], decode = (
                self._object_encoder(form, tag),
                self._object_decoder(form),
            )
        self._decoders[full] = self._decoders[tag] = decode

    def _refuse_tag(self, tag: Any) -> NoReturn:
        near = difflib.get_close_matches(tag, self._decoders, 1) if type(tag) is str else []
        meant = f", did you mean {near[0]!r}?" if near else ";"
        msg = (
            f"names {shown(tag)}, which the workflow does not know{meant} expected the classes "
            "that the snapshot was made with: Workflow(serializable=[...])"
        )
        raise MismatchError(msg)
