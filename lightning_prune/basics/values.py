"""Values that a user gives: numbers of any kind as Python's own, sequences of any kind as lists.

NumPy's numbers are numbers, and a list that a configuration tool made is a list. What is none is given back as it is,
for the check that follows to refuse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from lightning_prune.errors import ConfigError, shown

__all__ = ["as_flag", "as_fraction", "as_whole", "plain_list", "plain_number", "plain_text", "yaml_hint"]

_PERCENT = re.compile(r"\s*(\d+(?:\.\d*)?)\s*%\s*")
_LEADING_ZERO = re.compile(r"[-+]?0\d+")
_BASE_60 = re.compile(r"[-+]?\d+(:\d+)+")


def plain_number(value: Any) -> Any:
    """A number as an int or a float of Python; anything else, bools among it, as it is.

    A number of less precision than Python's is taken as it prints: a float32 0.9 is 0.9, not 0.8999999761581421, which
    would be one zero less than nine of ten.

    Example:
        >>> import numpy as np
        >>> plain_number(np.float32(0.9)), plain_number(np.int64(3)), plain_number(True), plain_number("3")
        (0.9, 3, True, '3')
    """
    if getattr(value, "ndim", None) == 0 and not isinstance(value, Real) and hasattr(value, "item"):
        value = value.item()  # an array or a tensor of one number, without importing either library
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    try:
        return float(str(value) if hasattr(value, "dtype") else value)
    except OverflowError:  # a fraction that is larger than any float
        return value


def plain_list(value: Any) -> Any:
    """A sequence, an array or a tensor of one dimension as a list of plain numbers; anything else as it is.

    What lies in it is not looked into any deeper, and a ``range`` stays one.

    Example:
        >>> import numpy as np
        >>> plain_list((np.int32(2), 4)), plain_list(np.array([2, 4])), plain_list("24")
        ([2, 4], [2, 4], '24')
    """
    if isinstance(value, (str, bytes, bytearray, range)):
        return value
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        return value.tolist()
    return [plain_number(item) for item in value] if isinstance(value, Sequence) else value


def plain_text(value: Any) -> Any:
    """A text as Python's own ``str``, also of a class derived from it; anything else as it is."""
    return str.__str__(value) if isinstance(value, str) else value


def as_fraction(name: str, value: Any) -> float:
    """A fraction in [0, 1] as a float.

    Args:
        name: How the user spells it, for the error.
        value: What the user gave.

    Raises:
        ConfigError: It is no number, or outside [0, 1].
    """
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
        hint = yaml_hint(number) or " Write 0.75 for 75 %."
        percent = _PERCENT.fullmatch(number) if isinstance(number, str) else None
        if percent:
            hint = f" Write {float(percent.group(1)) / 100:g} for {percent.group(1)} %."
        elif isinstance(number, (int, float)) and 1 < number <= 100 and not isinstance(number, bool):
            hint = f" Write {number / 100:g} for {number:g} %."
        raise ConfigError(f"{name} must be a fraction in [0, 1], got {shown(value)}.{hint}")
    return float(number)


def as_flag(name: str, value: Any) -> bool:
    """True or False, as Python's or as NumPy's; a text such as ``"no"`` would count as True.

    Args:
        name: How the user spells it, for the error.
        value: What the user gave.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> as_flag("overwrite", "no")
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: overwrite must be True or False, got 'no'. Write False.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of NumPy or torch, neither of them imported
        value = value.item()
    if isinstance(value, bool):
        return value
    meant = {"no": False, "off": False, "false": False, "yes": True, "on": True, "true": True}
    found = meant.get(value.strip().lower()) if isinstance(value, str) else None
    raise ConfigError(f"{name} must be True or False, got {shown(value)}.{'' if found is None else f' Write {found}.'}")


def as_whole(name: str, value: Any, *, least: int) -> int:
    """A whole number as an int.

    Args:
        name: How the user spells it, for the error.
        value: What the user gave.
        least: The smallest that can work.

    Raises:
        ConfigError: It is no whole number, or below ``least``.
    """
    number = plain_number(value)
    if type(number) is not int or number < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {shown(value)}.{yaml_hint(number)}")
    return number


def yaml_hint(value: object) -> str:
    """What YAML 1.1 may have made of a number that was written, as the end of an error; or nothing.

    Example:
        >>> yaml_hint("1e2")
        ' It is a text, which YAML makes of 1e2: write 100.'
        >>> yaml_hint("0.5")
        ' It is a text: write the number without quotes.'
    """
    if isinstance(value, bool):
        made = "yes, on and true" if value else "no, off and false"
        return f" YAML makes {value} of {made}: write a number."
    if value is None:
        return " YAML makes None of nothing, of ~ and of null: write a number, or leave the key out."
    if not isinstance(value, str):
        return ""
    text = value.strip()
    if _LEADING_ZERO.fullmatch(text):
        return f" In YAML a number with a leading 0 is octal: write {text.lstrip('+-0') or 0}."
    if _BASE_60.fullmatch(text):
        return f" YAML makes a number in base 60 of {text}: write a decimal one."
    try:
        number = float(text)
    except ValueError:
        return ""
    if set(text) <= set("+-.0123456789"):
        return " It is a text: write the number without quotes."
    if not math.isfinite(number):
        return ""
    written = str(int(number) if number.is_integer() else number)
    written = written if "." in written else written.replace("e", ".0e")  # YAML takes no exponent without a point
    return f" It is a text, which YAML makes of {text}: write {written}."
