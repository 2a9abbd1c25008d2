import sys

import pytest

from clr_loop.data.functions import call

MODULE = """\
import json
def add(a, b=10):
    return a + b
def everything(**arguments):
    return sorted(arguments)
def demanding(a, z):
    return a
def failing():
    raise OSError("no disk\\n\\n\\x1b[1mand no other\\x1b[0m")
def leaving():
    import sys
    sys.exit(0)
def misreading():
    return json.loads("{")
def silent():
    raise KeyboardInterrupt
def bare():
    assert False
number = 3
class Group:
    @staticmethod
    def member(b):
        return b
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_functions.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("x = 1\n1 / 0")
    (tmp_path / "needy_module.py").write_text("\n\nimport not_installed")
    (tmp_path / "torn_module.py").write_text("def build(:")
    # As in a script: the current directory is not on the path.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("users_functions", "broken_module", "needy_module", "torn_module"):
        sys.modules.pop(name, None)


def test_a_function_of_the_current_directory_gets_those_arguments_that_it_takes():
    assert call("users_functions:add", "model", a=1, c=5) == 11
    assert call("users_functions:add", "model", a=1, b=2) == 3
    assert call("users_functions:everything", "model", a=1, b=2) == ["a", "b"]
    assert call("users_functions:Group.member", "model", a=1, b=2) == 2


def test_nothing_in_the_current_directory_hides_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("def rgb_to_yiq(r, g, b): return 'wrong'")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert call("colorsys:rgb_to_yiq", "model", r=0, g=0, b=0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_module:build",
            "model no_such_module:build cannot be imported from the current directory or an installed package: "
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "broken_module:build",
            r"cannot be imported .*: ZeroDivisionError: division by zero \(\S*broken_module\.py, line 2\)$",
        ),
        ("needy_module:build", r"ModuleNotFoundError: No module named 'not_installed' \(\S*needy_module\.py, line 3\)"),
        ("torn_module:build", r"package: SyntaxError: .*torn_module\.py, line 1\)"),
        (":build", "cannot be imported"),
        ("users_functions:build", "package: AttributeError: module 'users_functions' has no attribute 'build'"),
        ("users_functions:number", "model users_functions:number is not a function but a int"),
        ("users_functions:", "is not a function but a module"),
        ("users_functions:demanding", r"failed: TypeError: demanding\(\) missing 1 required .* argument: 'z'"),
        (
            "users_functions:failing",
            r"model users_functions:failing failed: OSError: no disk \(\S*users_functions\.py, line 9\)$",
        ),
        ("users_functions:leaving", r"failed: it called sys\.exit\(0\) \(\S*users_functions\.py, line 12\)$"),
        ("users_functions:misreading", r"failed: JSONDecodeError: Expecting .*\(\S*users_functions\.py, line 14\)"),
        ("users_functions:bare", r"failed: AssertionError \(\S*, line 18\)$"),
    ],
)
def test_what_fails_is_one_line_with_the_users_error_and_place(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(name, "model", a=1)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_interrupt_from_the_keyboard_is_no_mistake_of_the_function():
    with pytest.raises(KeyboardInterrupt):
        call("users_functions:silent", "model")
