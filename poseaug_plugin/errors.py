"""What the user is told: errors, warnings, and the checks of plain values."""

import math
import os
import sys
import warnings
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep


class PoseAugError(ValueError):
    """A call or an option that does not fit; its message says what was expected and received."""


class PoseAugWarning(UserWarning):
    """A training that goes on, but probably not as the user means it."""


def warn(message: str) -> None:
    """Warn at the first line outside of this package that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, PoseAugWarning, stacklevel=level)


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, *, whole: bool = False
) -> None:
    """Refuse what is no finite number in [low, high]; a boolean is none. Raises `PoseAugError`."""
    kind, words = (Integral, "a whole number") if whole else (Real, "a number")
    most = math.inf if isinstance(value, float) else 2**63  # torch holds no larger whole numbers
    if isinstance(value, kind) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number may be larger than any float
            if low <= float(value) <= high and abs(float(value)) < most:
                return
    limits = "" if low == -math.inf else f", at least {low:g}"
    if math.isfinite(high):
        limits = f" from {low:g} to {high:g}"
    raise PoseAugError(f"{name} must be {words}{limits}, got {value!r}.")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False; raises `PoseAugError`."""
    if not isinstance(value, bool):
        raise PoseAugError(f"{name} must be True or False, got {value!r}.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices; raises `PoseAugError`."""
    if not isinstance(value, str) or value not in choices:
        raise PoseAugError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
