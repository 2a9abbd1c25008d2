"""Options as fields of a dataclass. Each says its default, its meaning and its range once.

    @options
    @dataclass(frozen=True)
    class Options:
        patience: int | None = option(None, "Stop after so many epochs without a better one.", low=1)

The check of the values, the class' docstring, a command's flag, and what a resumed run compares follow from the fields.
"""

import dataclasses
import functools
import math
import operator
import textwrap
import types
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from clr_loop.arguments import checked_types, fits

C = TypeVar("C", bound=type)
# Whether a resumed run must have the same value, may have another one, or takes the value for this call alone.
Resumed = Literal["same", "free", "once"]


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    resumed: Resumed = "same",
    has_flag: bool = True,
) -> Any:
    """Return a field of a dataclass that is decorated with `options`.

    Args:
        default: the default value; a dict is copied for each instance.
        help: whole sentences that say what the option does.
        low, high: the closed bounds of a number, or of each value of a mapping.
        above, below: the open bounds.
        resumed: whether a resumed run must have the "same" value, is "free" to have another, or takes it "once".
        has_flag: whether the commands have a flag for it.
    """
    metadata = {
        "help": help, "low": low, "high": high, "above": above, "below": below, "resumed": resumed,
        "has_flag": has_flag,
    }  # fmt: skip
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(kind: C) -> C:
    """Return the dataclass, which now checks its values and has each option in its docstring."""
    initialize = checked_types(kind.__init__)  # type: ignore[misc]

    @functools.wraps(initialize)
    def checked(self: Any, *arguments: Any, **named: Any) -> None:
        initialize(self, *arguments, **named)
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            _check(field, getattr(self, field.name), hints[field.name])

    kind.__init__ = checked  # type: ignore[misc]
    raised = "Raises:\n    ValueError: if a value is out of its range.\n    TypeError: if a value is of another type."
    attributes = "\n".join(map(_documented, dataclasses.fields(kind)))
    kind.__doc__ = f"{kind.__doc__}\n\nAttributes:\n{attributes}\n\n{raised}\n"
    return kind


def names_of(kind: type, resumed: Resumed) -> list[str]:
    """Return the options that a resumed run treats in this way."""
    return [field.name for field in dataclasses.fields(kind) if field.metadata["resumed"] == resumed]


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: those of a union, without None."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    return tuple(each for each in (get_args(hint) if is_union else (hint,)) if each is not types.NoneType)


def words_of(hint: Any) -> tuple[Any, ...]:
    """Return the words of the `Literal` in a type."""
    return tuple(word for each in kinds_of(hint) if get_origin(each) is Literal for word in get_args(each))


_BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "low": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "high": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def range_of(field: dataclasses.Field[Any]) -> str:
    """Return the bounds of an option in words; "" for one that has none."""
    bounds = {words: field.metadata[name] for name, (words, _) in _BOUNDS.items()}
    said = {words: bound for words, bound in bounds.items() if bound is not None}
    return " and ".join("finite" if bound == math.inf else f"{words} {bound:g}" for words, bound in said.items())


def _check(field: dataclasses.Field[Any], value: Any, hint: Any) -> None:
    """Raise ValueError for a value that is none of an option's words, or out of its range."""
    words = words_of(hint)
    others = [kind for kind in kinds_of(hint) if get_origin(kind) is not Literal]
    if words and value is not None and value not in words and not any(fits(value, kind) for kind in others):
        allowed = [repr(word) for word in words] + ["True or False" if kind is bool else "a number" for kind in others]
        raise ValueError(f"{field.name} is {value!r}; it must be {' or '.join(allowed)}.")
    for key, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
        if isinstance(number, Real) and not isinstance(number, bool) and not _is_within(field, number):
            name = field.name if key is None else f"{field.name}[{key!r}]"
            raise ValueError(f"{name} is {number}; it must be {range_of(field)}.")


def _is_within(field: dataclasses.Field[Any], number: Real) -> bool:
    bounds = [(holds, field.metadata[name]) for name, (_, holds) in _BOUNDS.items()]
    return all(holds(number, bound) for holds, bound in bounds if bound is not None)


def _documented(field: dataclasses.Field[Any]) -> str:
    """Return an option as a docstring lists it."""
    default = {} if field.default is dataclasses.MISSING else field.default
    bounds = f", {words}" if (words := range_of(field)) else ""
    text = f"{field.name} ({field.type}{bounds}; default {default!r}): {field.metadata['help']}"
    return textwrap.fill(
        text, 116, initial_indent="    ", subsequent_indent="        ", break_long_words=False, break_on_hyphens=False
    )
