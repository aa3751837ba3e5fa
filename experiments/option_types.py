"""Scalar options, checked against declared types by OmegaConf's structured configs. Imports no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
SCHEDULE = "{step: number}"


@dataclass(frozen=True)
class Rule:
    """A condition on a value of a declared type, as in `Annotated[int, Rule(lambda value: value > 0, "...")]`.

    Args:
        holds: whether a value of the type obeys the rule.
        noun: the values that obey it, such as "a whole number of at least 1".
    """

    holds: Callable[[Any], bool]
    noun: str


def checked(option: str, value: Any, declared: Any) -> Any:
    """Return the value of an option converted to its declared type; 1e8 is a whole number too.

    Only scalar types are checked: a union with any other type accepts everything. A number may be a schedule, which the
    class checks that takes it.

    Raises:
        ValueError: the value is of another type, or breaks the rule of the type.
    """
    members, rule = _parts(declared)
    kinds = tuple(kind for kind in members if get_origin(kind) is not Mapping)
    if not set(kinds) <= {*NOUNS, NoneType} or (isinstance(value, Mapping) and float in kinds):
        return value
    nouns = [rule.noun if rule else NOUNS[kind] for kind in kinds if kind is not NoneType]
    nouns += [SCHEDULE] if kinds != members else []
    null = ", or null" if NoneType in kinds else ""
    refusal = f"{option}={shown(value)} must be {' or '.join(nouns)}{null}"
    if isinstance(value, int | float) and int in kinds and float not in kinds:
        if abs(value) >= 2**63:  # no dtype holds it
            raise ValueError(refusal)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
    # OmegaConf would read the word `no` and the number 0 as false, the text '0.1' as a number, and true as a text.
    if type(value) not in kinds and (isinstance(value, bool | str) or set(kinds) <= {bool, NoneType}):
        raise ValueError(refusal)
    schema = OmegaConf.structured(_schema(kinds))
    try:
        schema.value = value
    except ValidationError:
        raise ValueError(refusal) from None
    if rule and value is not None and not rule.holds(schema.value):
        raise ValueError(refusal)
    return value if schema.value == value else schema.value  # 1 stays 1 where 1.0 is meant


def shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, str) and value.replace(".", "", 1).isdigit():
        return repr(value)  # a text, not a number
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parts(declared: Any) -> tuple[tuple[Any, ...], Rule | None]:
    """Return the types that a declared type unites, and the rule of one of them."""
    if get_origin(declared) in (Union, UnionType):
        parts = [_parts(member) for member in get_args(declared)]
        return tuple(kind for kinds, _ in parts for kind in kinds), next((rule for _, rule in parts if rule), None)
    if get_origin(declared) is Annotated:
        kind, *metadata = get_args(declared)
        return _parts(kind)[0], next((rule for rule in metadata if isinstance(rule, Rule)), None)
    return (declared,), None


@cache
def _schema(kinds: tuple[Any, ...]) -> type:
    return make_dataclass("Schema", [("value", Union[kinds])])  # noqa: UP007
