import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clr_loop
from clr_loop.arguments import checked_types, speaking_flags, spelled
from clr_loop.data import Dataset, Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.studies.comparison.measures import Measure


@checked_types
@dataclass(frozen=True)
class Things:
    number: float = 1.0
    names: Sequence[str] = ()
    pair: tuple[int, int] | None = None
    table: Mapping[int, float] | None = None
    anything: Any = None


def test_values_of_the_annotated_types_pass():
    for arguments in (
        {"number": 1, "names": ["a"], "pair": (1, 2), "table": {1: 2}, "anything": object()},
        {"number": np.float32(1), "names": ("a", "b"), "pair": [np.int64(1), 2], "table": {np.int32(1): np.float64(2)}},
        {"pair": None, "table": {}},
    ):
        made = Things(**arguments)
        assert {name: getattr(made, name) for name in arguments} == arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": "1"}, "number is '1'; it must be a number."),
        ({"number": True}, "number is True; it must be a number."),
        ({"names": "ab"}, "names is 'ab'; it must be a list, each a string."),
        ({"names": ["a", 3]}, "names is ['a', 3]; it must be a list, each a string."),
        ({"pair": (1,)}, "pair is (1,); it must be a tuple (a whole number, a whole number) or None."),
        ({"pair": (1, 2.5)}, "pair is (1, 2.5); it must be a tuple (a whole number, a whole number) or None."),
        (
            {"table": {"a": 1}},
            "table is {'a': 1}; it must be a dict, each key a whole number, each value a number or None.",
        ),
    ],
)
def test_a_value_of_another_type_is_named(arguments, message):
    with pytest.raises(TypeError) as caught:
        Things(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (StepOptions, {"clip_norm": "1"}, "clip_norm"),
        (StepOptions, {"skip_non_finite": "no"}, "skip_non_finite"),
        (RunOptions, {"profile": 3}, "profile"),
        (RunOptions, {"settings": [1]}, "settings"),
        (Measure, {"name": 3}, "name"),
        (Dataset, {"name": "a", "train": Examples(1), "validation": None, "num_classes": "3"}, "num_classes"),
        (fit, {"loop": None, "schedule": len, "epochs": 1}, "loop"),
        (TrainLoop, {"model": None, "inputs": None, "batch_size": 1}, "model"),
    ],
)
def test_the_package_checks_its_arguments_so(function, arguments, name):
    with pytest.raises(TypeError, match=rf"^{name} is .*; it must be "):
        function(**arguments)


def test_fit_names_what_is_no_callback_and_no_schedule(make_loop):
    loop = make_loop()
    for name, value in {"callbacks": object(), "schedule": 3, "epochs": 1.5, "resume": None}.items():
        with pytest.raises(TypeError, match=rf"^{name} is .*; it must be "):
            fit(**{"loop": loop, "schedule": len, "epochs": 1, name: value})


ADVICE = [
    (lambda: spelled("num_steps"), "num_steps", "--num_steps"),
    (lambda: spelled(step_size=112, step_size_down=90), "step_size=112, step_size_down=90",
     "--step_size=112 --step_size_down=90"),
    (lambda: spelled(resume=True, options={"resume_from": 6, "on_change": "replace"}),
     "resume=True, options=RunOptions(resume_from=6, on_change='replace')",
     "--resume --resume_from=6 --on_change=replace"),
    (lambda: spelled(max_lr=1.0, sweep="linear"), "max_lr=1, sweep='linear'", "--max_lr=1 --sweep=linear"),
]  # fmt: skip


@pytest.mark.parametrize(("advice", "in_python", "as_flags"), ADVICE)
def test_arguments_are_spelled_as_the_user_types_them(advice, in_python, as_flags):
    assert advice() == in_python
    with speaking_flags():
        assert advice() == as_flags
    assert advice() == in_python


def test_no_text_below_the_commands_names_a_flag():
    package = Path(clr_loop.__file__).parent
    files = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] != "commands"]
    assert len(files) > 80
    flags = [text for path in files for text in texts_of(path) if re.search(r"(^|\W)--[a-z_]+\b", text)]
    assert flags == []


def texts_of(path):
    """Return the texts with a space in a file's code: no docstring, no whole command, no argument of a program."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docs = {ast.get_docstring(node, clean=False) for node in documented}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)} - docs
    return [re.sub(r"`(python |clr-loop )[^`]*`", "", text) for text in texts if " " in text]
