"""Checks of arguments. Each returns its value, or raises TypeError for a wrong type and ValueError for a wrong value.

`checked_types` checks all arguments of a function, or fields of a dataclass, against their annotations.
"""

import functools
import inspect
import math
import os
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def checked_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, rule: str = "") -> float:
    """Return a number as a float. The error for one outside low–high, or for NaN if there is a rule, says the rule."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, which is not a number; give a number such as 0.5.")
    number = float(value)
    if rule and not low <= number <= high:
        raise ValueError(f"{name} is {value}; {rule}.")
    return number


def checked_integer(name: str, value: Any) -> int:
    """Return a whole number."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def checked_whole(name: str, value: Any, low: int = 1) -> int:
    """Return a whole number of at least `low` and at most 2**61, of which two halves of a cycle still fit an int64."""
    if not low <= checked_integer(name, value) <= 2**61:
        raise ValueError(f"{name} is {value}; it must be at least {low} and at most 2**61.")
    return int(value)


def checked_choice(name: str, value: Any, *choices: str) -> str:
    """Return one of a few strings."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(repr(choice) for choice in choices)}.")
    return value


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "a whole number"),
    float: ((Real,), "a number"),
    bool: ((bool, np.bool_), "True or False"),
    str: ((str,), "a string"),
    tuple: ((tuple, list), "a tuple"),
    Sequence: ((Sequence,), "a list"),
    Mapping: ((Mapping,), "a dict"),
    Callable: ((Callable,), "a function"),  # type: ignore[dict-item]
    os.PathLike: ((os.PathLike,), "a path"),
    types.NoneType: ((types.NoneType,), "None"),
}


def checked_types(function: F) -> F:
    """Return the function, or the dataclass, which now raises TypeError for an argument of another type than annotated.

    The error has the argument's name and value. Entries of tuples and sequences are checked, too. What an annotation
    says beyond classes, such as the words of a `Literal`, is left to the function.

    >>> @checked_types
    ... def repeat(text: str, times: int = 2) -> str:
    ...     return text * times
    >>> repeat("ab", "3")
    Traceback (most recent call last):
    TypeError: times is '3'; it must be a whole number.
    """
    if isinstance(function, type):
        function.__init__ = checked_types(function.__init__)  # type: ignore[misc]
        return cast(F, function)
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        if not hints:  # Not before, because an annotation may name what is defined below.
            hints.update({"return": Any, **get_type_hints(function)})
        for name, value in signature.bind(*arguments, **named).arguments.items():
            if not fits(value, hints.get(name, Any)):
                raise TypeError(f"{name} is {reprlib.repr(value)}; it must be {_words(hints[name])}.")
        return function(*arguments, **named)

    return cast(F, checked)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of the type that an annotation names; the words of a `Literal` are not compared."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if not isinstance(cast(Any, value), _KINDS.get(kind, ((kind,), ""))[0]):
        return False
    if kind in (int, float):
        return not isinstance(value, bool)
    if kind is Sequence:
        return not isinstance(value, str) and all(fits(each, inner[0]) for each in value)
    if kind is Mapping:
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if kind is tuple and inner[1:] != (...,):
        return len(value) == len(inner) and all(map(fits, value, inner))
    return True


def _words(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if kind not in _KINDS:
        name = getattr(kind, "__name__", str(kind))
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    words = _KINDS[kind][1]
    if kind is tuple and ... not in inner:
        return f"{words} ({', '.join(map(_words, inner))})"
    if kind is Mapping:
        values = f", each value {_words(inner[1])}" if inner[1] is not Any else ""
        return f"{words}, each key {_words(inner[0])}{values}"
    return f"{words}, each {_words(inner[0])}" if kind is Sequence else words
