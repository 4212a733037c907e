"""The form of a class: how its instances are read and built, and the classes of its fields."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import attrs

from sluicegate._annotations import UNRESOLVED, checker, fits, kinds_of, resolve
from sluicegate._data.refusals import (
    MismatchError,
    refuse_content,
    refuse_items,
    refuse_misfit,
    reported,
    shown,
)
from sluicegate._errors import RestoredError, brief


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sluicegate._data.refusals import Kinds

#: The state of a pydantic model beside its fields.
MODEL_STATE: dict[str, Kinds] = {
    "__pydantic_fields_set__": (set,),
    "__pydantic_extra__": (dict,),
    "__pydantic_private__": (dict,),
}


@attrs.frozen
class Look:
    """An annotation that the class of a value does not decide alone, and its check."""

    hint: Any
    fits: Callable[[Any], bool]


@attrs.frozen
class Form:
    """How the instances of a class are read and built.

    Attributes:
        cls: The class.
        kinds: The fields, each with the classes of its values.
        required: The fields that are always set.
        hints: The annotations of the fields.
        read: Returns the attributes of an instance, by name.
        build: Makes an instance of the values of its fields and of its other attributes.
        more: Whether an instance can have other attributes.
        ignored: Other attributes that are not kept.
        defaults: Functions that make the default of a field from the values of the fields before
            it, for data that is older than the field.
        looks: The checks for the items of fields.
        loose: The fields whose values can differ from their annotations.
        settle: Fits the state beside the fields to the class as it is now.
    """

    cls: type
    kinds: dict[str, Kinds]
    required: frozenset[str]
    hints: list[Any]
    read: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any], dict[str, Any]], Any]
    more: bool = False
    ignored: frozenset[str] = frozenset()
    defaults: Mapping[str, Callable[[dict[str, Any]], Any]] = MappingProxyType({})
    looks: Mapping[str, Look] = MappingProxyType({})
    loose: frozenset[str] = frozenset()
    settle: Callable[..., None] | None = None

    def missing(self, values: dict[str, Any]) -> list[str]:
        """Return the required fields that ``values`` does not have."""
        return [name for name in self.kinds if name in self.required and name not in values]

    def split(self, value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of an instance, and its other attributes that are kept, by name."""
        read = self.read(value)
        if read.keys() <= self.kinds.keys():
            return read, {}
        fields = {name: item for name, item in read.items() if name in self.kinds}
        others = read.keys() - self.kinds.keys() - self.ignored
        return fields, {name: item for name, item in read.items() if name in others}

    def odd_of(self, name: str, item: object) -> list[str]:
        """Return the name of a field in a list if its value does not fit the annotation.

        Raises:
            MismatchError: Only a loose field can have a value of such a class.
        """
        look = self.looks.get(name)
        if isinstance(item, self.kinds[name]) and (look is None or look.fits(item)):
            return []
        return self.odd_name(name, item)

    def odd_name(self, name: str, item: object) -> list[str]:
        """Return the name of a field whose value does not fit the annotation, in a list.

        Raises:
            MismatchError: Only a loose field can have a value of such a class.
        """
        if name not in self.loose and not isinstance(item, self.kinds[name]):
            refuse_misfit(item, self.kinds[name])
        return [name]

    def check(self, name: str, item: object, odd: list[str]) -> None:
        """Check a value that was read and does not fit the annotation.

        Raises:
            MismatchError: It was not odd when it was written.
        """
        if not isinstance(item, self.kinds[name]):
            if name not in odd or name not in self.loose:
                refuse_misfit(item, self.kinds[name])
        elif name not in odd:
            refuse_items(item, self.looks[name].hint)

    def check_complete(self, values: dict[str, Any]) -> list[str]:
        """Return the loose fields that an instance lacks.

        Raises:
            MismatchError: It lacks other required fields.
        """
        missing = self.missing(values)
        lost = [name for name in missing if name not in self.loose]
        if lost:
            msg = f"lacks {', '.join(map(repr, lost))}; expected all fields of {self.cls.__name__}"
            raise MismatchError(msg)
        return missing

    def bring_up_to_date(
        self, values: dict[str, Any], rest: dict[Any, Any], odd: list[str], *, drops: bool
    ) -> dict[str, Any]:
        """Fit data to the class as it is now, which can have new fields and lack old ones.

        Args:
            values: The fields in the data. This method adds the defaults of new fields.
            rest: The other attributes.
            odd: The names of the fields that did not fit their annotations.
            drops: Whether to leave out attributes that the class no longer has.

        Returns:
            The other attributes that are kept.

        Raises:
            MismatchError: A missing field has no default, a default factory fails, or the class
                no longer has an attribute.
        """
        kept = self._sort_out(rest, values, drops=drops) if rest else rest
        if self.settle is not None:
            self.settle(values, drops=drops)
        unset = [name for name in odd if name in self.loose]
        missing = [name for name in self.missing(values) if name not in unset]
        lost = [name for name in missing if name not in self.defaults]
        if lost:
            msg = (
                f"lacks {', '.join(map(repr, lost))}; expected all fields of {self.cls.__name__}, "
                "or a default for each new field"
            )
            raise MismatchError(msg)
        for name in missing:
            with reported():
                values[name] = self.defaults[name](values)
        return kept

    def _sort_out(
        self, rest: dict[Any, Any], made: dict[str, Any], *, drops: bool
    ) -> dict[str, Any]:
        """Move attributes that are fields by now to the fields, and return the others.

        Raises:
            MismatchError: A key is not a name, or the class has no other attributes.
        """
        kept: dict[str, Any] = {}
        for name, item in rest.items():
            if type(name) is not str or name in made:
                refuse_content(f"'x' has the key {shown(name)}, which is no other attribute's name")
            if name not in self.kinds:
                kept[name] = item
            elif isinstance(item, self.kinds[name]):
                made[name] = item
            else:
                refuse_misfit(item, self.kinds[name])
        if kept and not self.more and not drops:
            refuse_content(
                f"{self.cls.__name__} has no other attributes than its fields, and the data has "
                f"{', '.join(map(brief, kept))} (to leave them out: "
                "resume(snapshot, drop_removed_fields=True))"
            )
        return kept if self.more else {}

    def refuse_name(self) -> NoReturn:
        """Raise for an attribute of an instance that is no field."""
        raise MismatchError(self._no_field())

    def refuse_removed(self, *, drops: bool) -> None:
        """Raise for a name in the data that is no field, unless removed fields are left out."""
        if not drops:
            option = "resume(snapshot, drop_removed_fields=True)"
            msg = f"{self._no_field()}; or, to leave out removed fields, {option}"
            raise MismatchError(msg)

    def _no_field(self) -> str:
        fields = ", ".join(name for name in self.kinds if name not in MODEL_STATE) or "none"
        return f"is no field of {self.cls.__name__}; expected its fields: {fields}"


@attrs.frozen
class Field:
    """A field as its class declares it.

    Attributes:
        default: Its default, if that is a value.
        is_set: Whether every instance has it.
        make: Makes its default, given the object so far; None if there is no default.
        hint: Its annotation, if the class has it resolved.
        is_loose: Whether its value can differ from its annotation.
        convert: Converts a default that does not fit the annotation.
    """

    default: object = attrs.Factory(lambda: attrs.NOTHING)
    is_set: bool = True
    make: Callable[[Any], Any] | None = None
    hint: Any = None
    is_loose: bool = False
    convert: Callable[[Any], Any] | None = None


def defaults_of(
    fields: dict[str, Field],
    hints: dict[str, Any],
    build: Callable[[dict[str, Any], dict[str, Any]], Any],
) -> dict[str, Callable[[dict[str, Any]], Any]]:
    def maker(name: str, field: Field) -> Callable[[dict[str, Any]], Any]:
        def make(values: dict[str, Any]) -> Any:
            made = cast("Any", field.make)(
                build(dict(values), {})
            )  # a factory may read other fields
            if field.convert is None or fits(hints.get(name, Any), made):
                return made
            return field.convert(made)

        return make

    return {name: maker(name, field) for name, field in fields.items() if field.make is not None}


# -- annotations --------------------------------------------------------------------------------


def known_hints_of(cls: type) -> dict[str, Any]:
    """Return the annotations of a class, or none if one of them cannot be resolved."""
    try:
        return resolve(cls)
    except UNRESOLVED:
        return {}


def looks_of(hints: dict[str, Any], names: Iterable[str]) -> dict[str, Look]:
    """Return the checks for fields that the class of a value does not decide alone."""
    made = [(name, hints[name], checker(hints[name])) for name in names if name in hints]
    return {name: Look(hint, look) for name, hint, look in made if look is not None}


def kinds_of_field(hints: dict[str, Any], name: str, default: object) -> Kinds:
    kinds = kinds_of(hints.get(name, Any))
    if any(issubclass(kind, BaseException) for kind in kinds):
        kinds = (*kinds, RestoredError)
    # Defaults are not validated.
    fits_anyway = default is attrs.NOTHING or isinstance(default, kinds)
    return kinds if fits_anyway else (*kinds, type(default))
