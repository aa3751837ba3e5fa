"""Checks of options that every head and optimizer shares."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


def whole(name: str, value: Any, least: int) -> int:
    """Return `value` as an int.

    Raises:
        ValueError: `value` is no whole number, or less than `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        if not (isinstance(value, float) and value.is_integer()):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}, such as {name}={least}")
    elif type(value) is not int:
        value = value.__index__()
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
    return int(value)


def number(name: str, value: Any, *, least: float | None = None) -> float:
    """Return `value` as it is, once it is known to be a number.

    Raises:
        ValueError: `value` is no number, or less than `least`.
    """
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ValueError(f"{name}={value!r} must be a number")
    if least is not None and not value >= least:
        raise ValueError(f"{name}={value} must be at least {least:g}")
    return value  # type: ignore[no-any-return]


def keywords(owner: type) -> list[str]:
    """Return the names of all keyword options of a class whose constructors pass options on to their bases."""
    names: list[str] = []
    for each in owner.__mro__:
        if "__init__" in vars(each) and each is not object:
            parameters = list(inspect.signature(each.__init__).parameters.values())[1:]  # type: ignore[misc]
            names += [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return list(dict.fromkeys(names))


def refuse_unknown(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise the TypeError of a misspelt keyword argument, with the name of the class that the user called."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its options are {', '.join(known)}"
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}; {hint}")
