"""A closed codec for snapshots: values become plain JSON data and come back with their types.

Values that JSON has are written unchanged. Every other value is a tagged object,
``{"$": name, "v": ...}``, with the name of a built-in or of a class that the codec was given. The
codec never imports a name in the data. It runs no user code except default factories of new fields.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

import attrs
import msgspec

from sluicegate._annotations import class_of
from sluicegate._data.builtins import (
    TAG,
    Row,
    check_hashes,
    content_of,
    encode_float,
    encode_int,
    encode_str,
    is_text,
    rows,
)
from sluicegate._data.classes import form_of, parts_of, unset_row
from sluicegate._data.encoders import Encoders, as_is, beside_of, full_name, is_list_of_names
from sluicegate._data.pydantic import PREFIX, is_pydantics_own, is_secret, pydantic_rows
from sluicegate._data.refusals import (
    MAX_DEPTH,
    NO_STACK,
    MismatchError,
    TooDeepError,
    refuse_content,
    reported,
    shown,
)
from sluicegate._errors import SnapshotError


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sluicegate._data.encoders import Encode
    from sluicegate._data.form import Form

    Decode: TypeAlias = Callable[[dict[str, Any]], Any]


#: Encodes the content of a value for comparison only; it is never decoded.
_encode_content = msgspec.json.Encoder(order="deterministic").encode

_ATOMS = frozenset({str, int, float, bool, type(None)})
_NO_PARTS: tuple[dict[str, Any], list[Any]] = ({}, [])


class Codec:
    """Converts values of a fixed set of classes to plain JSON data and back.

    The codec keeps the types of built-in values and containers, of the values of ``datetime``,
    ``decimal``, ``fractions``, ``uuid``, ``pathlib``, ``collections`` (``deque``, ``OrderedDict``,
    ``Counter``) and ``zoneinfo``, and of instances of the known classes: events with their open
    fields, attrs classes, dataclasses, named tuples, enums (by name; flags by value), pydantic
    models and ``msgspec.Struct``. Exceptions become `RestoredError`. The codec restores the state
    of an instance directly: no constructor, validator or ``__post_init__`` runs. A field that the
    data lacks gets its default, because the class may have added it later. Values of
    ``functools.cached_property`` are not kept.

    Identity is not kept: an object that two values share becomes two objects.

    Both directions check the fields of an instance against the classes in their annotations and call
    no user function, so every written value can be read. A pydantic field, a field with a converter
    and the items of a container may differ from the annotation, because the class made them so.
    Such fields are listed in the data; any other field that does not fit is refused. An annotation
    that cannot be resolved is not checked.

    A codec is immutable, so tasks and threads can share it. No method is a checkpoint.

    Args:
        classes: The classes whose instances may be written and read. A generic alias means its
            class. Built-in types are allowed.
        drops_removed: Whether to leave out values of fields that the classes no longer have.

    Raises:
        SnapshotError: A class is of a kind that cannot be kept, or two different classes have the
            same module and name.
    """

    def __init__(self, classes: Iterable[type], *, drops_removed: bool = False) -> None:
        self._drops = drops_removed
        self._has_pydantic = False
        self._encoders = Encoders(
            {
                type(None): as_is,
                bool: as_is,
                int: encode_int,
                float: encode_float,
                str: encode_str,
            }
        )
        self._encoders[list] = self._encode_list
        self._encoders[dict] = self._encode_dict
        self._decoders: dict[str, Decode] = {"dict": self._decode_pairs}
        self._forms: dict[type, Form] = {}
        for row in (*rows(), *unset_row()):
            if row.cls not in _ATOMS:
                self._encoders[row.cls] = self._row_encoder(row)
            self._decoders[row.tag] = self._row_decoder(row)
        self._encoders.load, self._encoders.names = self._load_pydantic, self._decoders
        origins = dict.fromkeys(class_of(cls) for cls in classes)
        if any(is_pydantics_own(cls) for cls in origins):
            self._load_pydantic()
        known = [cls for cls in origins if cls not in self._encoders]
        shared = Counter([*self._decoders, *(cls.__qualname__ for cls in known)])
        for cls in known:
            self._add(cls, unique=shared[cls.__qualname__] == 1)
        self._names = [cls.__qualname__ for cls in known]
        self._classes = {cls.__name__: cls for cls in reversed(known)}

    @classmethod
    def of(
        cls, roots: Iterable[type], extra: Iterable[type] = (), *, drops_removed: bool = False
    ) -> Codec:
        """Make a codec for some classes and all classes in the annotations of their fields.

        Annotations are followed through unions, containers, ``Annotated``, type variables and
        aliases. List subclasses, and classes in annotations that cannot be resolved at run time,
        in ``extra``.

        Args:
            roots: The first classes. A root of a kind that cannot be kept is left out; its values
                are refused when they are written.
            extra: Further classes, which must be of a kind that can be kept. A class of secrets
                must be listed here.
            drops_removed: As for the constructor.

        Raises:
            SnapshotError: As for the constructor.
        """
        named = [class_of(kind) for kind in extra]
        found = dict.fromkeys(named)
        seen: set[int] = set()
        todo: list[Any] = [*roots, *named]
        kept: list[Any] = []  # keeps them alive, so that ids are unique
        while todo:
            hint = todo.pop()
            if id(hint) in seen:
                continue
            seen.add(id(hint))
            kept.append(hint)
            todo += parts_of(hint)
            if isinstance(hint, type) and not is_secret(hint) and form_of(hint) is not None:
                found[hint] = None
        return cls(found, drops_removed=drops_removed)

    def check_annotations(self, classes: Iterable[type]) -> None:
        """Check that every field of some classes can have a value that the codec keeps.

        Raises:
            SnapshotError: A field is annotated with classes of which none can be kept, such as a lock or a
                client. The message names the field.
        """
        for cls in classes:
            form = self.form(cls)
            if form is None:
                continue
            for name, kinds in form.kinds.items():
                if not any(issubclass(known, kinds) for known in self._encoders):
                    shown_kinds = " | ".join(full_name(kind) for kind in kinds)
                    msg = (
                        f"{cls.__name__}.{name} is annotated with {shown_kinds}, whose values cannot be "
                        "stored; expected data, and a resource of the step for anything live: "
                        "`Annotated[Client, Resource(open_client)]`, or, for a class of data, "
                        f"Workflow(serializable=[{kinds[0].__name__}])"
                    )
                    raise SnapshotError(msg)

    def class_named(self, name: str) -> type | None:
        """Return the first known class with a name; None where there is none."""
        return self._classes.get(name)

    def require(self, kind: type) -> None:
        """Check that an event that a step waits for can be kept when it arrives.

        Raises:
            SnapshotError: The codec does not know the class.
        """
        if class_of(kind) not in self._encoders:
            name = kind.__name__
            msg = (
                f"a step waits for {name}, a class that the workflow does not know, so its answer "
                f"could not be kept; expected `@step(waits_for=[{name}])`, or "
                f"Workflow(serializable=[{name}])"
            )
            raise SnapshotError(msg)

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as plain data: dicts with str keys, lists, str, int, float, bool, None.

        The data shares no mutable object with the value. ``json`` and ``msgspec`` accept it: integers
        have 64 bits, floats are finite, text is UTF-8. The order of keys matters.

        Args:
            value: The value to write.
            path: The name of the value in messages, such as ``"event Draft"``.

        Raises:
            SnapshotError: A part of the value cannot be kept: an instance of an unknown class, a
                live object, a field that does not fit its annotation, a circle, more than 100
                levels. The message has the path to it.
        """
        try:
            return self._encoders[type(value)](value, 0)
        except MismatchError as fault:
            raise fault.told(path) from fault.__cause__
        except RecursionError:
            raise MismatchError(NO_STACK).told(path) from None

    def encode_part(self, value: Any, depth: int) -> Any:
        """Return a part of a value as plain data.

        Args:
            value: The part.
            depth: How many values contain it.

        Raises:
            MismatchError: A part of it cannot be kept; it has the path from ``value``.
        """
        return self._encoders[type(value)](value, depth)

    def form(self, cls: type) -> Form | None:
        """Return the form of a class with fields that the codec knows; None for any other class."""
        return self._forms.get(cls)

    def content_key(self, value: Any) -> int:
        """Return a 64-bit number that is the same for equal content in every process.

        For a value that cannot be kept, only its class counts.
        """
        try:
            content = _encode_content(value)
        except (TypeError, ValueError, RecursionError):  # msgspec does not know a value in it
            try:
                content = json.dumps(self.encode(value, "a value"), sort_keys=True).encode()
            except SnapshotError:
                content = b""
        content = type(value).__name__.encode() + content
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())

    def decode(self, data: Any, path: str) -> Any:
        """Return the value that `encode` wrote as ``data``.

        Args:
            data: Plain data. It is not changed and shares no mutable object with the value.
            path: The name of the value in messages, such as ``"event Draft"``.

        Raises:
            SnapshotError: `encode` does not make such data: an unknown tag or class, a missing or
                unknown field, a field that does not fit its annotation, a wrong JSON type. The
                message has the path to it.
        """
        try:
            return self._decode(data)
        except MismatchError as fault:
            raise fault.told(path) from fault.__cause__
        except RecursionError:
            raise MismatchError(NO_STACK).told(path) from None

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
            fault.passed(f"[{len(made)}]", value)  # the length is the index of the item
            raise
        return made

    def _encode_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        if depth >= MAX_DEPTH:
            raise TooDeepError
        encoders = self._encoders
        items = list(value.items())  # a copy, because another thread may write to the dict
        plain = all(type(key) is str and key != TAG and is_text(key) for key, _ in items)
        if not plain:
            check_hashes([key for key, _ in items])
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
        count, ignored, looks = len(kinds), form.ignored, form.looks

        def encode(value: Any, depth: int) -> dict[str, Any]:
            if depth >= MAX_DEPTH:
                raise TooDeepError
            made: dict[str, Any] = {}
            rest: dict[str, Any] = {}
            odd: list[str] = []
            name = ""
            try:
                for name, item in read(value).items():
                    allowed = kinds.get(name)
                    if allowed is not None:
                        look = looks.get(name)
                        if not isinstance(item, allowed) or (look and not look.fits(item)):
                            odd += form.odd_name(name, item)
                        made[name] = encoders[type(item)](item, depth + 1)
                    elif name not in ignored:
                        if not form.more:
                            form.refuse_name()
                        rest[name] = encoders[type(item)](item, depth + 1)
            except MismatchError as fault:
                fault.passed(f".{name}", value)
                raise
            if rest or odd or len(made) < count:
                return {TAG: tag, "v": made, **beside_of(form, made, rest, odd)}
            return {TAG: tag, "v": made}

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
        if decode is None:
            decode = self._find(tag)
        return decode(data)

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
                made.append(self._decode(item))  # noqa: PERF401 - the length is the index
        except MismatchError as fault:
            fault.passed(f"[{len(made)}]", cast("Any", data))
            raise
        return made

    def _decode_pairs(self, data: dict[str, Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        pairs = self._decode_list(content_of(data))
        with reported():
            check_hashes([p[0] for p in pairs if type(p) is list and p])
        for number, pair in enumerate(pairs):
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
        least = len(shape) - row.optional
        bases = [tuple(kind for kind in allowed if kind.__name__ == "tzinfo") for allowed in shape]

        def decode(data: dict[str, Any]) -> Any:
            content = content_of(data)
            parts: list[Any] = (
                [self._decode(content)] if len(shape) == 1 else self._decode_list(content)
            )
            fit = least <= len(parts) <= len(shape) and all(
                type(part) in allowed or isinstance(part, base)
                for part, allowed, base in zip(parts, shape, bases, strict=False)
            )
            if not fit:
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
        looks, drops, settle = form.looks, self._drops, form.settle

        def decode(data: dict[str, Any]) -> Any:
            content, parts = data.get("v"), _NO_PARTS
            if type(content) is not dict or len(data) != 2:
                content, parts = self._open(form, data)
            rest, odd = parts
            made: dict[str, Any] = {}
            name: Any = ""
            try:
                for name, item in cast("dict[Any, Any]", content).items():
                    allowed = kinds.get(name)
                    if allowed is None:
                        form.refuse_removed(drops=drops)
                        continue
                    if type(item) not in _ATOMS:
                        item = self._decode(item)
                    look = looks.get(name)
                    if not isinstance(item, allowed) or (look and not look.fits(item)):
                        form.check(name, item, odd)
                    made[name] = item
            except MismatchError as fault:
                fault.passed(f".{name}", cast("object", content))
                raise
            if rest or len(made) < count or settle is not None:
                rest = form.bring_up_to_date(made, rest, odd, drops=drops)
            return build(made, rest)

        return decode

    def _open(
        self, form: Form, data: dict[str, Any]
    ) -> tuple[dict[Any, Any], tuple[dict[str, Any], list[Any]]]:
        """Return the fields in the data, the other attributes, and the names of odd fields.

        The values of odd fields did not fit their annotations when they were written.
        """
        beside: Any = data.get("x", {})
        if self._drops and not form.more and type(beside) is dict and TAG not in beside:
            # Removed fields are not decoded, because their classes may be gone as well.
            beside = {n: part for n, part in cast("Any", beside).items() if n in form.kinds}
        rest: Any = self._decode(beside)
        odd: Any = data.get("odd", [])
        content = content_of({k: part for k, part in data.items() if k not in ("x", "odd")})
        if type(content) is not dict:
            refuse_content(f"a {form.cls.__name__} of {shown(content)} in place of an object")
        if type(rest) is not dict:
            refuse_content(f"'x' is {shown(rest)} in place of an object")
        if not is_list_of_names(odd):
            refuse_content(f"'odd' is {shown(odd)} in place of a list of names")
        return cast("Any", content), cast("Any", (rest, odd))

    # -- classes ----------------------------------------------------------------------------

    def _add(self, cls: type, *, unique: bool) -> None:
        """Register a class by its full name and, if that is unique, by its short name."""
        full = full_name(cls)
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
            self._forms[cls] = form
            self._encoders[cls], decode = (
                self._object_encoder(form, tag),
                self._object_decoder(form),
            )
        self._decoders[full] = self._decoders[tag] = decode

    def _load_pydantic(self) -> None:
        """Register the classes that pydantic defines."""
        for row in () if self._has_pydantic else pydantic_rows():
            tagged = attrs.evolve(row, tag=PREFIX + row.tag)
            self._encoders[row.cls] = self._row_encoder(tagged)
            self._decoders[tagged.tag] = self._row_decoder(tagged)
        self._has_pydantic = True  # last, because another thread may load them too

    def _find(self, tag: Any) -> Decode:
        """Return the decoder of an unknown tag, which can be one of pydantic's."""
        if type(tag) is str and tag.startswith(PREFIX):
            self._load_pydantic()
            found = self._decoders.get(tag)
            if found is not None:
                return found
        return self._refuse_tag(tag)

    def _refuse_tag(self, tag: Any) -> NoReturn:
        near = difflib.get_close_matches(tag, self._decoders, 1) if type(tag) is str else []
        meant = f", did you mean {near[0]!r}?" if near else ";"
        msg = (
            f"names {shown(tag)}, which the workflow does not know{meant} expected the classes "
            "that the snapshot was made with: Workflow(serializable=[...])"
        )
        raise MismatchError(msg)
