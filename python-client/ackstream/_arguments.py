"""What callers say, checked before anything is done with it."""

import inspect
import re
from collections.abc import Callable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""Names of topics and subscriptions, as the server's configuration has them."""

MAX_PORT = 65535

TARGET = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})")
"""HOST:PORT, with an IPv6 address in brackets."""


def check_target(target: str) -> str:
    """Returns the target.

    Raises:
        ValueError: It is no host with a port from 1 to 65535.
    """
    found = TARGET.fullmatch(target)
    if found is None or not 1 <= int(found["port"]) <= MAX_PORT:
        raise ValueError(f'target is {target!r}: it must be HOST:PORT such as "localhost:50051" or "[::1]:50051"')
    return target


def check_name(what: str, name: str) -> str:
    """Returns the name of a topic or subscription.

    Raises:
        ValueError: No server has a topic or subscription of this name.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(
            f"{what} is {name!r}: a name has 1 to 255 letters, digits, '-', '_' and '.', "
            "and begins with a letter or digit"
        )
    return name


def check_handler(handler: object) -> None:
    """Looks whether something can be called with one delivery.

    Raises:
        TypeError: It cannot, or it would only make a generator.
    """
    if not callable(handler):
        raise TypeError(f"handler is {handler!r}: it must be a function of one delivery")
    for function in (handler, getattr(handler, "__call__", None)):  # noqa: B004 - an object that is called
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"handler is {handler!r}: it makes a generator and would handle nothing; use no `yield`")
    if not _takes_one(handler):
        raise TypeError(f"handler is {handler!r}: it must take one argument, the delivery")


def _takes_one(handler: Callable[..., object]) -> bool:
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return True  # a builtin that does not say
    try:
        signature.bind(object())
    except TypeError:
        return False
    return True
