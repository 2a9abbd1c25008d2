"""Functions of the user, named on the command line as `package.module:function`."""

import inspect
import pkgutil
import re
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

_LIBRARIES = ("<frozen", *(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")))


def call(name: str, what: str, **offered: Any) -> Any:
    """Import a function, also from the current directory, and return what it returns.

    Args:
        name: `package.module:function`.
        what: what the function makes, such as "model"; errors begin with it.
        **offered: the function gets those arguments that it has parameters for.

    Raises:
        ValueError: if there is no such function, or if it raises, calls sys.exit or needs other arguments.
    """
    if "" not in sys.path and "." not in sys.path:
        sys.path.append("")  # The last place, so that nothing there hides an installed package.
    origin = "from the current directory or an installed package"
    function = guarded(f"{what} {name} cannot be imported {origin}", pkgutil.resolve_name, name)
    if not callable(function):
        raise ValueError(f"{what} {name} is not a function but a {type(function).__name__}.")
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {key: value for key, value in offered.items() if takes_all or key in parameters}
    return guarded(f"{what} {name} failed", function, **taken)


def guarded(problem: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function; whatever it raises becomes a ValueError with the problem, the place and the error."""
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        # Users look for the line of their own code, not for one inside Keras.
        frames = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames[-1:]
        is_known = bool(frames) and not frames[-1].filename.startswith(("<frozen", pkgutil.__file__))
        place = f" in {frames[-1].filename}, line {frames[-1].lineno}" if is_known else ""
        message = textwrap.shorten(re.sub(r"\x1b\[[\d;]*m", "", str(error)), 500, placeholder=" …")
        words = ": ".join(word for word in (type(error).__name__, message) if word)
        if isinstance(error, SystemExit):
            words = f"it called sys.exit({error.code!r})"
        raise ValueError(f"{problem}{place}: {words}") from error
