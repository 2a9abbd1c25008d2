import pytest

from clr_loop.data import named

MODULE = """
def add(a, b=10):
    return a + b
def everything(**arguments):
    return sorted(arguments)
def demanding(a, z):
    return a
def failing():
    raise OSError("no disk\\nand no other")
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_functions.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_is_called_with_those_arguments_that_it_takes():
    assert named.call("users_functions:add", "model", a=1, c=5) == 11
    assert named.call("users_functions:add", "model", a=1, b=2) == 3
    assert named.call("users_functions:everything", "model", a=1, b=2) == ["a", "b"]
    assert named.call("collections:OrderedDict", "model") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:build", "model no_such_module:build cannot be imported: ModuleNotFoundError: No module named"),
        ("broken_module:build", "cannot be imported: ZeroDivisionError: division by zero; write it as package.module"),
        (":build", "cannot be imported"),
        ("users_functions:build", "must name a function, received none in users_functions"),
        ("users_functions:number", "must name a function, received a int; name a function"),
        ("users_functions:demanding", "no other arguments than a, received one that needs z; give it a default"),
        ("users_functions:failing", "failed: OSError: no disk; call it by itself to see where"),
    ],
)
def test_what_cannot_be_called_is_named_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        named.call(name, "model", a=1)
    assert "\n" not in str(caught.value)
