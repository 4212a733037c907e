"""Idioms of pydantic, dataclasses and msgspec in the body of an event class.

An event is an attrs class. Without this module ``pydantic.Field(...)`` would be an ordinary default
value, and a method under ``@field_validator`` would never be called. Options that attrs also has
are translated. All others are refused when the class is made; the message shows the line to write
instead. These libraries are not imported: their objects are recognised by their class names.
"""

from __future__ import annotations

import keyword
import sys
import types
import typing
from typing import TYPE_CHECKING, Any, cast

import attrs

from sluicegate._annotations import all_extras_of, extras_of, is_union, resolve_all, text_of
from sluicegate._foreign import (
    is_attrs_field,
    is_constraint,
    is_dataclass_field,
    is_field_info,
    is_function,
    is_init_var,
    is_of,
    is_private_attr,
    is_struct_field,
    is_undefined,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


#: Options of ``Field`` that have no effect, because they hold for every event.
_NEEDLESS = {
    "annotation",
    "alias_priority",
    "kw_only",
    "frozen",
    "validate_default",
    "allow_mutation",
}
#: Options of ``Field`` that describe a field; they become metadata of the attrs field.
DESCRIBING = ("title", "description", "examples", "deprecated", "json_schema_extra")
_TRANSLATED = {*_NEEDLESS, *DESCRIBING, "default", "default_factory", "alias", "repr", "init"}

#: The attrs validator for a constraint; the user writes a function for all others.
_VALIDATORS: dict[str, Callable[[Any], str]] = {
    "gt": lambda value: f"attrs.validators.gt({value!r})",
    "ge": lambda value: f"attrs.validators.ge({value!r})",
    "lt": lambda value: f"attrs.validators.lt({value!r})",
    "le": lambda value: f"attrs.validators.le({value!r})",
    "min_length": lambda value: f"attrs.validators.min_len({value!r})",
    "max_length": lambda value: f"attrs.validators.max_len({value!r})",
    "min_items": lambda value: f"attrs.validators.min_len({value!r})",
    "max_items": lambda value: f"attrs.validators.max_len({value!r})",
    "pattern": lambda value: f"attrs.validators.matches_re({_pattern(value)!r}, func=re.search)",
    "regex": lambda value: f"attrs.validators.matches_re({_pattern(value)!r}, func=re.match)",
}
_CONVERTERS = {"strip_whitespace": "str.strip", "to_lower": "str.lower", "to_upper": "str.upper"}
_CONSTRAINTS = (
    *_VALIDATORS,
    *_CONVERTERS,
    *("multiple_of", "strict", "allow_inf_nan", "max_digits", "decimal_places", "ascii_only"),
    *("coerce_numbers_to_str", "union_mode", "fail_fast", "unique_items", "const", "func"),
)
#: Methods that pydantic and dataclasses call, and attrs does not.
_HOOKS = ("__post_init__", "model_post_init", "__post_init_post_parse__")
_CONFIG = {
    "extra": "`class {cls}(Event, open=True):` to take any keyword beside the fields",
    "strict": "`class {cls}(Event, validate=True):` to check types",
    "validate_assignment": "the class without it: an event cannot be changed",
    "frozen": "the class without it: an event is always frozen",
    "arbitrary_types_allowed": "the class without it: a field may hold any object",
    "alias_generator": "`attrs.field(alias=...)` for each field",
    "populate_by_name": "`attrs.field(alias=...)` for each field",
}
#: Names of pydantic's configuration, by which a class ``Config`` in an event is recognised.
_CONFIG_NAMES = {
    *_CONFIG,
    *("allow_mutation", "orm_mode", "from_attributes", "use_enum_values", "json_encoders", "title"),
    *("schema_extra", "json_schema_extra", "validate_default", "validate_all", "fields"),
    *("anystr_strip_whitespace", "str_strip_whitespace", "str_min_length", "str_max_length"),
    *("smart_union", "underscore_attrs_are_private", "keep_untouched", "protected_namespaces"),
}


def translate(cls: type) -> None:
    """Translate the fields in the body of an event class for attrs, before attrs reads them.

    Raises:
        TypeError: The class uses idioms that attrs does not have; the message lists each with the
            line to write instead.
    """
    annotations = own_annotations(cls)
    problems = _bases(cls)
    if problems:
        raise TypeError(problems[0])
    problems = _hooks(cls, annotations)
    resolved = _resolve(cls, annotations)
    for name, value in list(vars(cls).items()):
        if name not in annotations:
            problems += _unannotated(cls, name, value, has_annotations=bool(annotations))
    for name, note in annotations.items():
        field = _BodyField(
            cls, name, note, resolved.get(name, note), vars(cls).get(name, attrs.NOTHING)
        )
        problems += field.problems()
        made = field.translated()
        if made is not None and not problems:
            setattr(cls, name, made)
    if problems:
        raise TypeError("\n".join(problems))


def own_annotations(cls: type) -> dict[str, Any]:
    """Return the annotations in the body of a class, or none if Python cannot evaluate them."""
    try:
        return dict(cls.__annotations__)
    except NameError:  # Python 3.14 evaluates annotations when they are read
        return {}


# -- the class itself ------------------------------------------------------------------------------


def _bases(cls: type) -> list[str]:
    for base in cls.__mro__:
        if is_of(base, "pydantic", "BaseModel"):
            given = next(b for b in cls.__bases__ if base in b.__mro__)
            line = f"`class {cls.__name__}(Event):` with a field of class {given.__name__}"
            return [f"{cls.__name__} is an event and a model of pydantic; expected one: {line}"]
        if is_of(base, "msgspec", "Struct"):
            return [
                f"{cls.__name__} is an event and a Struct; expected `class {cls.__name__}(Event):`"
            ]
    return []


def _hooks(cls: type, annotations: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    body = vars(cls)
    for name in _HOOKS:
        if isinstance(body.get(name), types.FunctionType):
            line = "`def __attrs_post_init__(self) -> None:`"
            found.append(f"{cls.__name__}.{name} is never called; expected {line}")
    config: Any = body.get("model_config")
    note = str(annotations.get("model_config", "ConfigDict"))
    if isinstance(config, dict) and ("ConfigDict" in note or "ClassVar" in note):
        found.append(_configured(cls, "model_config", cast("dict[str, Any]", config)))
    config = body.get("Config")
    if isinstance(config, type):
        names = {n: v for n, v in vars(config).items() if not n.startswith("__")}
        if config.__bases__ == (object,) and names and names.keys() <= _CONFIG_NAMES:
            found.append(_configured(cls, "Config", names))
    return found


def _configured(cls: type, what: str, config: Mapping[str, Any]) -> str:
    advice: list[str] = []
    for key, value in config.items():
        text = _CONFIG.get(key, "the class without it")
        if key == "extra" and value != "allow":
            text = "the class without it: an event refuses unknown fields"
        advice.append(text.format(cls=cls.__name__))
    wanted = "; ".join(dict.fromkeys(advice)) or "the class without it"
    return f"{cls.__name__}.{what} is pydantic's and has no effect in an event; expected {wanted}"


def _unannotated(cls: type, name: str, value: Any, *, has_annotations: bool) -> list[str]:
    """Return the problem of an attribute without annotation that would have no effect."""
    where = f"{cls.__name__}.{name}"
    if is_private_attr(value):
        return [f"{where} is a PrivateAttr; expected {_private_line(name, '...', value)}"]
    decorator = _decorator(value)
    if decorator is not None:
        return [_decorated(cls, name, *decorator)]
    is_field = is_field_info(value) or is_dataclass_field(value) or is_struct_field(value)
    if is_field or (has_annotations and is_attrs_field(value)):
        return [f"{where} has no annotation, so it is no field; expected `{name}: ... = ...`"]
    return []


def _decorator(value: Any) -> tuple[str, tuple[str, ...]] | None:
    """Return the pydantic decorator that made an attribute, and the fields that it names."""
    if hasattr(value, "__validator_config__") or hasattr(value, "__root_validator_config__"):
        return ("validator" if hasattr(value, "__validator_config__") else "root_validator"), ()
    info = getattr(value, "decorator_info", value)
    if not type(info).__module__.startswith("pydantic."):
        return None
    named = {
        "ValidatorDecoratorInfo": "validator",
        "FieldValidatorDecoratorInfo": "field_validator",
        "RootValidatorDecoratorInfo": "root_validator",
        "ModelValidatorDecoratorInfo": "model_validator",
        "ComputedFieldInfo": "computed_field",
        "FieldSerializerDecoratorInfo": "field_serializer",
        "ModelSerializerDecoratorInfo": "model_serializer",
    }
    name = named.get(type(info).__name__)
    return None if name is None else (name, tuple(getattr(info, "fields", ())))


def _decorated(cls: type, name: str, decorator: str, fields: tuple[str, ...]) -> str:
    notes = own_annotations(cls)
    if decorator in ("validator", "field_validator"):
        field = next((f for f in fields if f in notes), "field")
        line = f"{field}: {text_of(notes.get(field, '...'))} = attrs.field(converter={name})"
        line = f"`{line}`, or `validator=` with a function of (event, field, value) that raises"
    elif decorator in ("root_validator", "model_validator"):
        line = "`def __attrs_post_init__(self) -> None:`, which raises where fields do not fit"
    elif decorator == "computed_field":
        line = f"`@property` alone above `def {name}(self)`"
    else:
        line = f"an ordinary method, called where the event is written: `event.{name}()`"
    return f"{cls.__name__}.{name} has @{decorator}, which is never called; expected {line}"


# -- one field -------------------------------------------------------------------------------------


class _BodyField:
    """A field in the body of an event class."""

    def __init__(self, cls: type, name: str, note: Any, hint: Any, value: Any) -> None:
        self._where = f"{cls.__name__}.{name}"
        self._name = name
        self._note = note
        self._hint = hint
        self._value = value
        #: The call that has the options, such as ``Field``, for messages.
        self._spelling = ""
        self._options: dict[str, Any] = {}
        self._refused: dict[str, Any] = {}
        self._functions: list[str] = []
        #: Whether a constraint applies to a part of the value, such as the items of a list.
        self._is_deep = False
        self._read()

    def _read(self) -> None:
        for part in extras_of(self._hint):
            if is_field_info(part):
                self._take_info(part, annotated=True)
        near = [*extras_of(self._hint)]
        if is_union(self._hint):
            near += [one for part in typing.get_args(self._hint) for one in extras_of(part)]
        for part in all_extras_of(self._hint):
            inner = getattr(part, "metadata", ()) if is_field_info(part) else (part,)
            for one in inner:
                if is_function(one) or is_constraint(one):
                    self._take_constraint(one)
                    self._is_deep = self._is_deep or not any(part is other for other in near)
        if is_field_info(self._value):
            self._take_info(self._value, annotated=False)
        elif is_dataclass_field(self._value):
            self._take_dataclass_field(self._value)
        elif is_struct_field(self._value):
            self._take_struct_field(self._value)

    def _take_info(self, info: Any, *, annotated: bool) -> None:
        self._spelling = "Field"
        given = _given(info)
        alias = given.get("alias")
        for name in ("validation_alias", "serialization_alias"):
            if alias is not None and given.get(name) == alias:
                del given[name]
        if annotated:
            given.pop("discriminator", None)  # it describes the type
        for part in getattr(info, "metadata", ()):
            self._take_constraint(part)
        for name, option in given.items():
            if name not in _TRANSLATED:
                self._refused[name] = option
            elif name not in _NEEDLESS and not is_undefined(option):
                self._options[name] = option
        if getattr(info, "default_factory_takes_validated_data", False):
            make: Any = self._options.get("default_factory")
            if make is not None:
                self._options["default_factory"] = attrs.Factory(
                    lambda event: make(dict(event.__dict__)), takes_self=True
                )

    def _take_constraint(self, part: Any) -> None:
        if is_function(part):
            self._functions.append(type(part).__name__)
        else:
            self._refused.update(_constraints(part))

    def _take_defaults(self, spelling: str, field: Any, missing: Any) -> None:
        self._spelling = spelling
        for name in ("default", "default_factory"):
            if getattr(field, name) is not missing:
                self._options[name] = getattr(field, name)

    def _take_dataclass_field(self, field: Any) -> None:
        self._take_defaults("dataclasses.field", field, sys.modules["dataclasses"].MISSING)
        for name in ("repr", "init"):
            if getattr(field, name) is False:
                self._options[name] = False
        if getattr(field, "doc", None):
            self._options["description"] = field.doc
        if field.metadata:
            self._options["metadata"] = dict(field.metadata)
        if field.kw_only is False:
            self._refused["kw_only"] = False
        if field.compare is False:
            self._refused["compare"] = False
        if field.hash is not None:
            self._refused["hash"] = field.hash

    def _take_struct_field(self, field: Any) -> None:
        self._take_defaults("msgspec.field", field, sys.modules["msgspec"].NODEFAULT)
        if field.name is not None:
            self._refused["name"] = field.name

    def problems(self) -> list[str]:
        """Return the options that attrs does not have, each with the line to write instead."""
        text = str(self._note)
        if "KW_ONLY" in text and self._value is attrs.NOTHING:
            line = "the class without that line: the fields of an event are keyword-only"
            return [f"{self._where} is {text_of(self._note)}; expected {line}"]
        if is_init_var(self._note) or text.startswith(("InitVar[", "dataclasses.InitVar[")):
            line = "a field, or a function that makes the event"
            return [f"{self._where} is an InitVar, which an event cannot have; expected {line}"]
        if is_private_attr(self._value):
            line = _private_line(self._name, text_of(self._hint), self._value)
            return [f"{self._where} is a PrivateAttr; expected {line}"]
        found: list[str] = []
        alias = self._options.get("alias", getattr(self._value, "alias", None))
        if isinstance(alias, str) and (not alias.isidentifier() or keyword.iskeyword(alias)):
            line = f"another alias, and {alias!r} renamed in the data before it is decoded"
            found.append(
                f"{self._where} has the alias {alias!r}, no keyword argument; expected {line}"
            )
        if self._refused:
            given = ", ".join(f"{name}={value!r}" for name, value in self._refused.items())
            spelling = f"{self._spelling}({given})" if self._spelling else f"the constraint {given}"
            found.append(
                f"{self._where} has {spelling}, which has no effect in an event; expected {self._line()}"
            )
        elif self._functions:
            found.append(
                f"{self._where} has {', '.join(self._functions)} in its annotation, which an event "
                f"does not call; expected {self._line()}"
            )
        return found

    def translated(self) -> Any:
        """Return the attrs field for the class body, or None if the field needs no translation."""
        if not self._options and not self._spelling:
            return None
        described = {n: self._options[n] for n in DESCRIBING if n in self._options}
        metadata = {**self._options.get("metadata", {}), **described}
        value: Any = self._value
        if is_attrs_field(value):
            value.metadata = {**metadata, **value.metadata}
            return value
        names = ["repr", "init", "alias"]
        options = {n: self._options[n] for n in names if n in self._options}
        if not self._spelling or value is attrs.NOTHING or self._is_field_object():
            if "default_factory" in self._options:
                make: Any = self._options["default_factory"]
                is_made = isinstance(make, attrs.Factory)  # type: ignore[arg-type] # it is a class
                options["default"] = make if is_made else attrs.Factory(make)
            elif "default" in self._options:
                options["default"] = self._options["default"]
        else:
            options["default"] = value
        return attrs.field(metadata=metadata, **options)

    def _is_field_object(self) -> bool:
        value = self._value
        is_foreign = is_field_info(value) or is_dataclass_field(value) or is_struct_field(value)
        return is_foreign or is_attrs_field(value)

    def _line(self) -> str:
        """Return the equivalent line for attrs."""
        if "discriminator" in self._refused:
            named = f"Field(discriminator={self._refused['discriminator']!r})"
            return f"`{self._name}: Annotated[{text_of(self._hint)}, {named}]`"
        checks, converters, explained = self._checks()
        parts = self._kept()
        if converters:
            parts.append(f"converter={converters[0] if len(converters) == 1 else converters}")
        if checks:
            wrapped = checks[0] if len(checks) == 1 else f"[{', '.join(checks)}]"
            if type(None) in typing.get_args(self._hint):
                wrapped = f"attrs.validators.optional({wrapped})"
            parts.append(f"validator={wrapped}")
        value = f" = attrs.field({', '.join(parts)})" if parts else ""
        return f"`{self._name}: {text_of(self._hint)}{value}`{explained}"

    def _kept(self) -> list[str]:
        """Return the arguments of ``attrs.field`` for the options that attrs also has."""
        parts: list[str] = []
        if "default_factory" in self._options:
            make = self._options["default_factory"]
            parts.append(f"factory={getattr(make, '__name__', 'make')}")
        elif "default" in self._options:
            parts.append(f"default={self._options['default']!r}")
        elif not (self._value is attrs.NOTHING or self._is_field_object()):
            parts.append(f"default={self._value!r}")
        named = (self._options.get("alias"), *map(self._refused.get, ("validation_alias", "name")))
        alias = next((name for name in named if isinstance(name, str)), None)
        if alias is not None:
            parts.append(f"alias={alias!r}")
        if self._options.get("repr") is False:
            parts.append("repr=False")
        return parts

    def _checks(self) -> tuple[list[str], list[str], str]:
        """Return the validators and converters for the constraints, and an explanation of them."""
        known = {} if self._is_deep else _VALIDATORS
        checks = [f(self._refused[n]) for n, f in known.items() if n in self._refused]
        rest = self._refused.keys() & {*_CONSTRAINTS} - known.keys() - _CONVERTERS.keys()
        explained = ""
        if rest - {"strict"}:
            checks.append(f"check_{self._name}")
            explained = f", where check_{self._name}(event, field, value) raises"
        if "strict" in rest:
            explained += ", and `validate=True` behind the name of the base"
        converters = [f for n, f in _CONVERTERS.items() if self._refused.get(n)]
        if self._functions:
            converters.append(f"convert_{self._name}")
            explained += ", or `validator=` with a function of (event, field, value) that raises"
        if "exclude" in self._refused:
            explained += f"; leave {self._name!r} out where the event is written"
        return checks, converters, explained


def _private_line(name: str, note: str, value: Any) -> str:
    if value.default_factory is not None:
        made = f"attrs.field(factory={getattr(value.default_factory, '__name__', 'make')})"
    else:
        made = "None" if is_undefined(value.default) else repr(value.default)
    return f"`{name}: {note} = {made}`: a field whose name begins with _ is no argument"


def _given(info: Any) -> dict[str, Any]:
    """Return the options passed to ``Field(...)``."""
    if hasattr(info, "_attributes_set"):
        return dict(info._attributes_set)
    names = [
        n for n in (*_TRANSLATED, *_CONSTRAINTS, "exclude", "discriminator") if n != "annotation"
    ]
    found = {name: getattr(info, name, None) for name in names}  # pydantic.v1
    kept = {name: value for name, value in found.items() if value is not None}
    return {name: value for name, value in kept.items() if (name, value) != ("repr", True)}


def _constraints(part: Any) -> dict[str, Any]:
    found = {name: getattr(part, name, None) for name in _CONSTRAINTS}
    kept = {name: value for name, value in found.items() if value is not None}
    return kept or {type(part).__name__: part}


def _resolve(cls: type, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations, resolved where that is possible already.

    Strings are resolved only if a library with constraints is imported. The names of the function
    around the class are available, because it is still running.
    """
    if not ("pydantic" in sys.modules or "annotated_types" in sys.modules):
        return dict(annotations)
    if not any(isinstance(note, str) for note in annotations.values()):
        return dict(annotations)
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != cls.__module__:
        frame = frame.f_back
    around: Mapping[str, Any] = frame.f_locals if frame is not None else {}
    module = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    names = {**module, **around, cls.__name__: cls}
    found: dict[str, Any] = {}
    for name, note in annotations.items():
        try:
            found.update(resolve_all({name: note}, names))
        except Exception:  # noqa: BLE001 - whatever an annotation does; it is resolved when it is used
            found[name] = note
    return found


def _pattern(value: Any) -> Any:
    return getattr(value, "pattern", value)
