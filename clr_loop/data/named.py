"""A function named in text, `package.module:function`: found, and called with those arguments that it takes."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any


def is_function_name(name: str) -> bool:
    """Returns whether a name is meant as `package.module:function`."""
    return ":" in name


def call(name: str, what: str, **arguments: Any) -> Any:
    """Imports the function and returns what it returns.

    A module in the current directory is found too.

    Args:
        name: `package.module:function`.
        what: that it stands for, such as "model"; for errors.
        **arguments: each is passed if the function has a parameter of its name, and else left out.

    Raises:
        ValueError: if there is no such module or function, it is not callable, needs other arguments, or fails.
    """
    function = _find(name, what)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # A few built-in functions have no signature; they take nothing of ours.
        parameters = {}  # type: ignore[assignment]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in arguments
    ]
    if missing:
        raise ValueError(
            f"{what} {name} must need no other arguments than {', '.join(arguments) or 'none'}, received one that "
            f"needs {', '.join(missing)}; give it a default"
        )
    try:
        return function(**{key: value for key, value in arguments.items() if takes_any or key in parameters})
    except Exception as error:
        raise ValueError(f"{what} {name} failed: {_one_line(error)}; call it by itself to see where") from error


def _find(name: str, what: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.append("")  # Last, so that nothing there can stand in the way of a package.
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Whatever a module does when it is imported may fail.
        raise ValueError(
            f"{what} {name} cannot be imported: {_one_line(error)}; write it as package.module:function, and start "
            "from the directory that holds the package"
        ) from error
    if not hasattr(module, function_name):
        raise ValueError(f"{what} {name} must name a function, received none in {module_name}; look at its name")
    function = getattr(module, function_name)
    if not callable(function):
        raise ValueError(f"{what} {name} must name a function, received a {type(function).__name__}; name a function")
    return function


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
