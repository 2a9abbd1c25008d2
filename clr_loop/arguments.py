"""Checks of arguments. Each returns its value, or raises TypeError for a wrong type and ValueError for a wrong value.

`checked_types` checks all arguments of a function, or fields of a dataclass, against their annotations.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import math
import os
import reprlib
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
        is_length = isinstance(value, str) and value.endswith(("st", "ep", "%"))
        advice = f" As steps it is loop.steps({value!r}{', epochs=…' * value.endswith('%')})." if is_length else ""
        raise TypeError(f"{name} is {value!r}; it must be a whole number.{advice}")
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


_speaks_flags = False


@contextlib.contextmanager
def speaking_flags() -> Iterator[None]:
    """Let `spelled` write flags: a command is running, whose user types them."""
    global _speaks_flags
    before, _speaks_flags = _speaks_flags, True
    try:
        yield
    finally:
        _speaks_flags = before


def are_flags_spoken() -> bool:
    """Return whether `spelled` writes flags."""
    return _speaks_flags


def spelled(*names: str, options: Mapping[str, Any] | None = None, **values: Any) -> str:
    """Return arguments as a user types them, for the advice of an error: as Python, or as flags of a command.

    Args:
        *names: of arguments without a value, as in "raise num_steps".
        options: arguments that are fields of `RunOptions` in Python.
        **values: arguments with their values.

    >>> spelled("num_steps"), spelled(resume=True, options={"on_change": "keep"})
    ('num_steps', "resume=True, options=RunOptions(on_change='keep')")
    """
    if _speaks_flags:
        given = {**values, **(options or {})}.items()
        flags = [name if value is True else f"{name}={_short(value)}" for name, value in given]
        return " ".join(f"--{flag}" for flag in [*names, *flags])
    inner = ", ".join(f"{name}={value!r}" for name, value in (options or {}).items())
    outer = [f"{name}={_short(value) if isinstance(value, float) else repr(value)}" for name, value in values.items()]
    return ", ".join([*names, *outer, *([f"options=RunOptions({inner})"] if inner else [])])


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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


# What Keras' `fit`, `evaluate` and `compile` call something, and how it is said here.
_KERAS_NAMES = {
    "x": "give the inputs as TrainLoop(model, inputs, targets) or loop.evaluate(inputs, targets)",
    "y": "give the targets as TrainLoop(model, inputs, targets) or loop.evaluate(inputs, targets)",
    "validation_data": "give fit(…, validation=(inputs, targets)), or a dataset of batches",
    "validation_split": "split the arrays yourself, and give fit(…, validation=(inputs[:n], targets[:n])) the first n",
    "validation_batch_size": "give fit(…, options=RunOptions(validation_batch_size=…))",
    "validation_freq": "give fit(…, options=RunOptions(validate_every=…)), in steps",
    "validation_steps": "give fit(…, validation=dataset.take(…))",
    "batch_size": "give TrainLoop(model, inputs, targets, batch_size=…); a dataset is batched by dataset.batch(…)",
    "epochs": "give fit(loop, schedule, epochs=…)",
    "shuffle": "give TrainLoop(model, inputs, targets, shuffle=…); a dataset is shuffled by dataset.shuffle(…)",
    "class_weight": "give TrainLoop(…, class_weight=…)",
    "sample_weight": "give TrainLoop(model, inputs, targets, sample_weight=…); a dataset holds it as its third part",
    "initial_epoch": "fit goes on from the loop's own place; a run directory goes on with resume=True",
    "steps_per_epoch": "give TrainLoop.from_dataset(model, dataset, num_examples=…), the examples of an epoch",
    "steps": "give evaluate(dataset.take(…))",
    "callbacks": "give fit(loop, schedule, callbacks=…)",
    "verbose": "only fit(loop, schedule, verbose=…) shows what it does",
    "return_dict": "evaluate always returns a dict",
    "learning_rate": "give fit(loop, Constant(…)), or loop.run(rates)",
    "optimizer": "the loop takes it from model.compile(optimizer, loss, metrics=…)",
    "loss": "the loop takes it from model.compile(optimizer, loss, metrics=…)",
    "metrics": "the loop takes them from model.compile(optimizer, loss, metrics=…)",
    "jit_compile": "give TrainLoop(…, options=StepOptions(jit_compile=…))",
    "clipnorm": "give TrainLoop(…, options=StepOptions(clip_norm=…)), the norm of all gradients together",
    "global_clipnorm": "give TrainLoop(…, options=StepOptions(clip_norm=…))",
    "save_best_only": "give fit(…, run_dir=…), which keeps the newest checkpoints and the best one",
    "restore_best_weights": "give fit(…, options=RunOptions(restore_best=True))",
    "initial_learning_rate": "a constant rate is learning_rate, and the lowest rate of a cycle is base_lr",
    "min_lr": "the lowest rate of a cycle is base_lr",
    "maximal_learning_rate": "the highest rate of a cycle is max_lr",
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
        for name, value in _bound(signature, function, arguments, named, hints).items():
            if not fits(value, hints.get(name, Any)):
                what = f"{name} is {reprlib.repr(value)}; it must be {_words(hints[name])}."
                raise TypeError(f"{what}{_advice(name, value)}")
        return function(*arguments, **named)

    return cast(F, checked)


def _bound(
    signature: inspect.Signature,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    hints: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments by name; raise TypeError, with what to type instead, if they do not fit the signature."""
    what, parameters = function.__qualname__.removesuffix(".__init__"), signature.parameters.values()
    check_names(what, named, signature, hints)
    places = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    here = {*places[: len(arguments)], *named}
    missing = [each.name for each in parameters if each.name not in here and each.default is each.empty]
    missing = [name for name in missing if signature.parameters[name].kind not in _ANY_NUMBER]
    if missing:
        raise TypeError(f"{what} needs {', '.join(missing)}; give {what}(…, {missing[0]}=…).")
    if len(arguments) > len(places) and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
        others = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
        taken = ", ".join(name for name in places if name != "self")
        raise TypeError(f"{what} takes {taken} by position; name the others, as in {what}(…, {others[0]}=…).")
    return signature.bind(*arguments, **named).arguments


_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_names(
    what: str, given: Collection[str], signature: inspect.Signature, hints: Mapping[str, Any] | None = None
) -> None:
    """Raise TypeError, which says the name to use, if an argument has a name that a function does not know.

    Args:
        what: the function's name.
        given: the names of the arguments.
        signature: of the function.
        hints: the types of its arguments. Those that are dataclasses of options have fields that may be meant.
    """
    known = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in (name for name in given if name not in known):
        if name in _KERAS_NAMES:
            raise TypeError(f"{what} has no argument {name}, which Keras has; {_KERAS_NAMES[name]}.")
        for parameter, hint in (hints or {}).items():
            for kind in filter(dataclasses.is_dataclass, (hint, *get_args(hint))):
                if name in {field.name for field in dataclasses.fields(kind)}:
                    options = f"{parameter}={_words(kind).split()[-1]}({name}=…)"
                    raise TypeError(f"{what} has no argument {name}; give {what}(…, {options}).")
        names = [each for each in known if each != "self"]
        near = difflib.get_close_matches(name, names, 1)
        advice = f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}."
        raise TypeError(f"{what} has no argument {name}; {advice}")


# What to give in place of a value of another type.
_ADVICE = {
    "loop": "Make one with TrainLoop(model, inputs, targets, batch_size=…).",
    "schedule": "Give one such as Triangular(base_lr=0.001, max_lr=0.006, step_size=2000).",
    "validation": "Give (inputs, targets), a tf.data.Dataset of batches, or the part of a dataset: mnist.validation.",
    "test": "Give (inputs, targets), a tf.data.Dataset of batches, or the part of a dataset: mnist.validation.",
}


def _advice(name: str, value: Any) -> str:
    if name == "schedule" and isinstance(value, Real) and not isinstance(value, bool):
        return f" For a constant rate give Constant({value})."
    return f" {_ADVICE[name]}" if name in _ADVICE else ""


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
        name = getattr(kind, "__name__", str(kind)).replace("DatasetV2", "tf.data.Dataset")
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
    words = _KINDS[kind][1]
    if kind is tuple and ... not in inner:
        return f"{words} ({', '.join(map(_words, inner))})"
    if kind is Mapping:
        values = f", each value {_words(inner[1])}" if inner[1] is not Any else ""
        return f"{words}, each key {_words(inner[0])}{values}"
    return f"{words}, each {_words(inner[0])}" if kind is Sequence else words
