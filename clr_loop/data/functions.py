"""Functions and models of the user, named on the command line as `package.module:name` or `module.py:name`."""

import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Users look for the line of their own code, not for one of these: Python's own, installed packages, and this one.
_LIBRARIES = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
_LIBRARIES += (str(Path(__file__).parents[1]), str(Path(tempfile.gettempdir(), "__autograph_generated_file")))

_NOISE = re.compile(r"(\x1b|\\x1b)\[[\d;]*m|\{\{function_node [^}]*\}\}|\[Op:\w+\] name:")
_PLACE = re.compile(r'File "(.+)", line (\d+), in ')
_NAMED = re.compile(r"\w*(Error|Exception|Exit|Interrupt)\b")
# Lines of an error that only lead to what it says, or follow it.
_LEADING = re.compile(r".*:$|'?Exception encountered when calling|•")


def call(name: str, what: str, **offered: Any) -> Any:
    """Import a function, also from the current directory, and return what it returns.

    Args:
        name: as in `find`.
        what: what the function makes, such as "model"; errors begin with it.
        **offered: the function gets those arguments that it has parameters for.

    Raises:
        ValueError: if there is no such function, or if it raises, calls sys.exit or needs other arguments.
    """
    function = _function(name, what)
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {key: value for key, value in offered.items() if takes_all or key in parameters}
    return guarded(f"{what} {name} failed", function, **taken)


def parameters_of(name: str, what: str) -> list[str]:
    """Return the names of a function's parameters; see `call`."""
    return list(inspect.signature(_function(name, what)).parameters)


def is_imported(name: str) -> bool:
    """Return whether the module that a name begins with was imported already; see `find`."""
    return _place_of(name)[1] in sys.modules


def find(name: str, what: str, is_anew: bool = False) -> Any:
    """Import what a name says, also from the current directory.

    Args:
        name: `package.module:name`, or `folder/module.py:name` with the path of the module's file.
        what: as in `call`.
        is_anew: whether to run the module again if it was imported before, so that it makes its objects anew.

    Raises:
        ValueError: if the module cannot be imported, or has no such name.
    """
    folder, module, attribute = _place_of(name)
    if folder not in sys.path and not (folder == "" and "." in sys.path):
        sys.path.append(folder)  # The last place, so that nothing there hides an installed package.
    if is_anew:
        sys.modules.pop(module, None)
    origin = "from the current directory or an installed package"
    return guarded(f"{what} {name} cannot be imported {origin}", pkgutil.resolve_name, f"{module}:{attribute}")


def _place_of(name: str) -> tuple[str, str, str]:
    """Return the folder to import from, "" for the current one, the module, and what is named in it."""
    module, _, attribute = name.partition(":")
    if not module.endswith(".py"):
        return "", module, attribute
    path = Path(module)
    return str(path.parent.resolve()) if len(path.parts) > 1 else "", path.stem, attribute


def _function(name: str, what: str) -> Callable[..., Any]:
    function = find(name, what)
    if not callable(function):
        raise ValueError(f"{what} {name} is not a function but a {type(function).__name__}.")
    return function


def guarded(problem: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function; whatever it raises becomes a ValueError with the problem, the error and its place."""
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{problem}: {in_one_line(error)}") from error


def in_one_line(error: BaseException, left_out: tuple[str, ...] = ()) -> str:
    """Return what an error says, without what Keras and TensorFlow put around it, and the user's line that raised it.

    `left_out` are beginnings of paths that hold no code of the user, besides the libraries and this package.
    """
    text = str(error).replace("\\n", "\n")  # A KeyError shows its text as Python code.
    lines = [line.strip() for line in _NOISE.sub("", text).splitlines() if line.strip()]
    # Code that ran inside of TensorFlow has left its traceback in the text.
    places = [(match[1], match[2]) for match in map(_PLACE.match, lines) if match]
    named = [line for line in lines if _NAMED.match(line)] if places else []
    said = named[-1] if named else next((line for line in lines if not _LEADING.match(line)), "")
    if isinstance(error, SystemExit):
        said = f"it called sys.exit({error.code!r})"
    elif not named:
        said = ": ".join(word for word in (type(error).__name__, said) if word)
    places = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(error.__traceback__)] + places
    absolute = [(os.path.abspath(path), line) for path, line in places if not path.startswith("<")]
    own = [place for place in absolute if not place[0].startswith(left_out + _LIBRARIES)]
    where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    return textwrap.shorten(said, 300, placeholder=" …").rstrip(".") + where
