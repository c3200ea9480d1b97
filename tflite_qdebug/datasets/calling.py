"""The user's own functions: found as ``module:function``, and called."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any, Callable, List, Union

from tflite_qdebug.errors import DatasetError, OptionError, did_you_mean

FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*$")

# ``module:function``, the function itself, or nothing.
Function = Union[None, str, Callable[[Any], Any]]


def import_function(text: str, expected: str = "a function that returns samples") -> Callable[..., Any]:
    """Imports ``module:function``; modules in the working directory are found as ``python -m`` would find them.

    Raises:
        OptionError: There is no such module or function, or it is something else than ``expected``.
    """
    module_name, _, path = text.partition(":")
    added = os.getcwd() not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs here, and may raise anything
        raise OptionError(f"{text}: importing {module_name} failed with {type(error).__name__}: {error}") from error
    finally:
        if added and os.getcwd() in sys.path:
            sys.path.remove(os.getcwd())
    for part in path.split("."):
        if not hasattr(value, part):
            names: List[str] = [name for name in vars(value) if callable(getattr(value, name, None))]
            raise OptionError(f"{module_name} has no function {path!r}.{did_you_mean(part, names)}")
        value = getattr(value, part)
    if not callable(value):
        raise OptionError(f"{text} is a {type(value).__name__}, expected {expected}")
    function: Callable[..., Any] = value
    return function


def option_function(option: str, value: Function, expected: str) -> Union[Callable[[Any], Any], None]:
    """Returns the function that an option names or is.

    Raises:
        OptionError: It is neither ``module:function`` nor a function.
    """
    if value is None or callable(value):
        return value
    if not isinstance(value, str) or not FUNCTION.match(value):
        raise OptionError(f"{option}={value!r} is no function, expected module:function, {expected}")
    return import_function(value, expected)


def call(option: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """Calls the function of an option.

    Raises:
        DatasetError: It raised, or returned nothing; the text says which it was.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        made = function(argument)
    except Exception as error:
        raise DatasetError(f"{option}: the function {name} raised {type(error).__name__}: {error}") from error
    if made is None:
        raise DatasetError(f"{option}: the function {name} returned None, expected what it has made of its argument")
    return made
