"""Flags that are made from the fields of an options class, and the options that these flags say."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, get_origin, get_type_hints

from absl import flags

from clr_loop.options import kinds_of, range_of, words_of

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # They belong to the module that calls `define`.

_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define(kind: type, *names: str, lengths: Collection[str] = (), units: str = "") -> None:
    """Define flags for options. Default, help, words and range are those of the fields.

    Args:
        kind: a class that `clr_loop.options.options` decorates.
        *names: the options that get a flag; without any, all that may have one.
        lengths: options that are numbers of steps, and whose flag is a text in `units`; the command converts it.
        units: what the help says of such a text.
    """
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, kinds, words = field.name, kinds_of(hints[field.name]), words_of(hints[field.name])
        if not field.metadata["has_flag"] or name not in (names or [name]):
            continue
        help_text = field.metadata["help"]
        help_text += f" It is {bounds}." if (bounds := range_of(field)) else ""
        if name in lengths:
            default = None if field.default is None else str(field.default)
            flags.DEFINE_string(name, default, f"{help_text} {units}")
        elif kinds[0] in _DEFINE and not words:
            _DEFINE[kinds[0]](name, field.default, help_text)
        elif words and float not in kinds:
            texts = list(words) + (["true", "false"] if bool in kinds else [])
            flags.DEFINE_enum(name, field.default, texts, help_text)
        elif field.default is dataclasses.MISSING:
            flags.DEFINE_list(name, [], f"{help_text} {_form(kinds)}")
        else:
            flags.DEFINE_string(name, field.default, f"{help_text} {_form(kinds)}")


def values(kind: type) -> dict[str, Any]:
    """Return what the flags say of the options of a class; options without a flag are left out.

    Raises:
        ValueError: if a text cannot be read.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.metadata["has_flag"] and field.name in FLAGS]
    return {name: _read(name, FLAGS[name].value, hints[name]) for name in names}


def _form(kinds: tuple[Any, ...]) -> str:
    """Return how an option is written that is more than one number or word."""
    if get_origin(kinds[0]) is tuple:
        return "Write FROM:TO in steps, such as 100:200."
    return "Write a number or a word." if float in kinds else "Write regex=factor,regex=factor."


def _read(name: str, value: Any, hint: Any) -> Any:
    """Return the option that a flag's value stands for."""
    kinds = kinds_of(hint)
    if not isinstance(value, str | list) or value in words_of(hint) or kinds[0] in (str, int):
        return value
    if bool in kinds:
        return value == "true"
    try:
        if isinstance(value, list):
            return {regex: float(factor) for regex, _, factor in (text.rpartition("=") for text in value)}
        if get_origin(kinds[0]) is tuple:
            first, last = map(int, value.split(":"))
            return first, last
        return float(value)
    except ValueError as error:
        text = ",".join(value) if isinstance(value, list) else value
        raise ValueError(f"--{name}={text} cannot be read. {_form(kinds)}") from error
