"""Options of heads, margins, indexes and row optimizers: their declaration, documentation and checks.

A class either has a dataclass of its options, `Options`, or is a dataclass itself. Types, defaults and meanings are
declared there and nowhere else.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self, TypeVar

from .warn import warn_user

Owner = TypeVar("Owner", bound=type)

# Names before version 0.3. Options are accepted under both names. A method that overrides one by its former name is
# refused, because it would never be called.
RENAMED_OPTIONS = {"filter_below": "min_probability", "filter_above": "max_negative_cosine"}
RENAMED_METHODS = {
    "select": "select_classes",
    "selected": "on_selected",
    "blank": "empty_copy",
    "successor": "rebuilt",
}


def option(default: Any, help: str) -> Any:
    """Return the dataclass field of an option.

    Args:
        default: the default value; immutable.
        help: one or two sentences that give the meaning, the unit, and what None means.
    """
    return dataclasses.field(default=default, metadata={"help": help})


def options_of(target: Any) -> type | None:
    """Return the dataclass that declares the options of a class: `target.Options` or the class itself, else None."""
    options = getattr(target, "Options", target)
    return options if isinstance(options, type) and dataclasses.is_dataclass(options) else None


def option_fields(target: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a class by name; empty if the class declares none."""
    options = options_of(target)
    return {field.name: field for field in dataclasses.fields(options) if "help" in field.metadata} if options else {}


def make_options(owner: type, given: Mapping[str, Any]) -> Any:
    """Return the options of a class from keyword arguments.

    Raises:
        TypeError: an argument that the class does not have.
        ValueError: a value out of range.
    """
    given = with_current_names(owner, given)
    refuse_unknown(owner, given)
    options = options_of(owner)
    assert options is not None, f"{owner.__name__} declares no options"
    return options(**given)


def with_current_names(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments by their current names, with a FutureWarning for each former name."""
    fields, current = option_fields(owner), dict(given)
    for former in RENAMED_OPTIONS.keys() & current.keys():
        if (name := RENAMED_OPTIONS[former]) in fields:
            if name in current:
                raise TypeError(
                    f"{owner.__name__}() got {former!r} and {name!r}, two names of one option; drop {former!r}"
                )
            warn_user(f"{former} of {owner.__name__} is now named {name}; write {name}={given[former]}", FutureWarning)
            current[name] = current.pop(former)
    return current


def signature(owner: type) -> inspect.Signature:
    """Return the arguments of a class, with the options that its constructors pass on as `**options`."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in owner.__mro__:
        if "__init__" in vars(base) and base is not object:
            own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            if parameters:  # bases get keyword arguments as `**options`, and the others from the subclass itself
                own = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
            for parameter in own:
                if parameter.kind is not parameter.VAR_KEYWORD:
                    parameters.setdefault(parameter.name, parameter)
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
                break
    for name, field in option_fields(owner).items():
        if name not in parameters:
            keyword = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            parameters[name] = keyword.replace(default=field.default, annotation=field.type)
    return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))


def documented(owner: Owner, arguments: Mapping[str, str] = MappingProxyType({})) -> Owner:
    """Complete a class's signature, and the section "Args" of its docstring, with its options.

    Use it as the decorator above `@dataclass`. Where classes have `Options`, call it in the `__init_subclass__` of
    their base.

    Args:
        owner: the class; changed in place.
        arguments: name -> meaning of arguments of its constructor that are not options.
    """
    full = signature(owner)
    if options_of(owner) is owner:
        _accept_former_names(owner)
    else:  # a dataclass has a signature of its own
        owner.__signature__ = full  # type: ignore[attr-defined]
    if owner.__doc__:
        helps = {**arguments, **{name: field.metadata["help"] for name, field in option_fields(owner).items()}}
        entries = [_entry(parameter, helps[name]) for name, parameter in full.parameters.items() if name in helps]
        text, _, after = inspect.cleandoc(owner.__doc__).partition("\n\nArgs:\n")
        section, _, rest = after.partition("\n\n")
        if not after and "\n\nRaises:\n" in text:  # arguments come before errors
            text, rest = text.split("\n\nRaises:\n")
            rest = f"Raises:\n{rest}"
        lines = [line for line in (section, *entries) if line]
        owner.__doc__ = "\n\n".join(filter(None, [text, "\n".join(["Args:", *lines] if lines else []), rest]))
    return owner


def _accept_former_names(owner: type) -> None:
    """Make the constructor of a dataclass accept options by their former names."""
    construct = owner.__init__  # type: ignore[misc]

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **given: Any) -> None:  # noqa: N807
        construct(self, *args, **with_current_names(owner, given))

    owner.__init__ = __init__  # type: ignore[misc]


def _entry(parameter: inspect.Parameter, help: str) -> str:
    """Return the line of a docstring about one argument."""
    kind = ""
    if parameter.annotation is not parameter.empty:  # classes by their names without modules
        kind = f" ({re.sub(r'[a-z_0-9.]+[.](?=[A-Z])', '', inspect.formatannotation(parameter.annotation))})"
    default = "" if parameter.default is parameter.empty else f" Default: {parameter.default!r}."
    return textwrap.fill(
        f"{parameter.name}{kind}: {help}{default}", 100, initial_indent=4 * " ", subsequent_indent=8 * " "
    )


def refuse_unknown(owner: type, given: Mapping[str, Any]) -> None:
    """Raise a TypeError for a keyword argument that a class does not have, with the name that was probably meant."""
    known = list(signature(owner).parameters)
    for name in given:
        if name in known or RENAMED_OPTIONS.get(name) in known:
            continue
        if close := difflib.get_close_matches(name, known, n=1):
            hint = f"did you mean {close[0]!r}?"
        else:
            hint = f"its options are {', '.join(known)}" if known else "it has no options"
        raise TypeError(f"{owner.__name__}() got an unexpected keyword argument {name!r}; {hint}")


class OptionValue:
    """Attribute of a head that returns one of its options. It cannot be assigned: a head reads `head.options`."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, head: Any, owner: type) -> Any:
        return self if head is None else getattr(head.options, self.name)

    def __set__(self, head: Any, value: Any) -> None:
        raise AttributeError(
            f"{self.name} is an option of {type(head).__name__} and cannot be assigned; pass {self.name}={value!r} to "
            "the constructor"
        )


class Configured:
    """Base class of dataclasses of options, whose constructor refuses an unknown option by `refuse_unknown`."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        refuse_unknown(cls, options)
        return super().__new__(cls)


def refuse_renamed_methods(owner: type) -> None:
    """Raise a TypeError for a class that overrides a method by its former name."""
    for former, name in RENAMED_METHODS.items():
        if former in vars(owner) and hasattr(owner, name):
            raise TypeError(f"{owner.__name__}.{former} is now named {name}; rename the method")


def whole(name: str, value: Any, least: int) -> int:
    """Return `value` as an int.

    Raises:
        ValueError: `value` is not a whole number, or is less than `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        if not (isinstance(value, float) and value.is_integer()):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}, such as {name}={least}")
    elif type(value) is not int:
        value = value.__index__()
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
    return int(value)


def ignored(label: Any) -> Any:
    """Return the option `ignore_label` unchanged.

    Raises:
        ValueError: it is neither a whole number nor None.
    """
    if label is not None and (isinstance(label, bool) or not hasattr(label, "__index__")):
        raise ValueError(f"ignore_label={label!r} must be a whole number, such as -100; None ignores none")
    return label


def number(name: str, value: Any, *, least: float | None = None) -> float:
    """Return `value` unchanged.

    Raises:
        ValueError: `value` is not a number, or is less than `least`.
    """
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ValueError(f"{name}={value!r} must be a number")
    if least is not None and not value >= least:
        raise ValueError(f"{name}={value} must be at least {least:g}")
    return value  # type: ignore[no-any-return]
