"""What the user is told: checks of plain values, where a warning points, and odd values."""

from __future__ import annotations

import linecache
import math
import re
import warnings
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import make_batch
from torch import Tensor, nn

import poseaug_plugin
from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugHook, PoseAugWarning, Spread
from poseaug_plugin.errors import check_choice, check_flag, check_number, warn
from poseaug_plugin.host.adapter import _warn_of_assumed_camera, batch_intrinsics


def message_of(check, *arguments: object, **options: object) -> str:
    with pytest.raises(PoseAugError) as caught:
        check(*arguments, **options)
    return str(caught.value)


# -- numbers ---------------------------------------------------------------------------------------

NUMBERS = {
    "whole": 3,
    "real": 0.5,
    "negative": -2.5,
    "fraction": Fraction(1, 3),
    "numpy whole": np.int64(3),
    "numpy real": np.float32(0.5),
    "zero": -0.0,
}
NO_NUMBERS = {
    "NaN": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "numpy NaN": np.float32("nan"),
    "larger than any float": 10**400,
    "text": "3",
    "nothing": None,
    "flag": True,
    "numpy flag": np.True_,
    "complex": 1j,
    "list": [3],
    "array": np.ones(1),
    "tensor": torch.ones(()),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_pass(name: str) -> None:
    check_number("share", NUMBERS[name])


@pytest.mark.parametrize("name", NO_NUMBERS)
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_no_number_is_refused_by_name_and_value(whole: bool, name: str) -> None:
    value = NO_NUMBERS[name]
    words = "a whole number" if whole else "a number"
    expected = f"share must be {words}, got {value!r}."
    assert message_of(check_number, "share", value, whole=whole) == expected


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(0), -(2**62)])
def test_whole_numbers_pass_as_such(value: object) -> None:
    check_number("seed", value, whole=True)


@pytest.mark.parametrize("value", [3.0, 0.5, np.float64(3), Fraction(3)])
def test_other_numbers_are_not_whole(value: object) -> None:
    expected = f"seed must be a whole number, got {value!r}."
    assert message_of(check_number, "seed", value, whole=True) == expected


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1, 1.0, np.float32(1)])
def test_both_ends_of_a_range_belong_to_it(value: object) -> None:
    check_number("share", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, -1, 2, math.inf, -math.inf, math.nan])
def test_numbers_out_of_range_are_refused_with_the_range(value: float) -> None:
    expected = f"share must be a number from 0 to 1, got {value!r}."
    assert message_of(check_number, "share", value, 0.0, 1.0) == expected


def test_a_range_may_have_no_end() -> None:
    check_number("yaw", 1e300, 0.0)
    assert message_of(check_number, "yaw", -1, 0.0) == "yaw must be a number, at least 0, got -1."
    expected = "width must be a whole number, at least 1, got 0."
    assert message_of(check_number, "width", 0, 1, whole=True) == expected


# -- flags and choices -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False])
def test_flags_pass(value: bool) -> None:
    check_flag("flip", value)


@pytest.mark.parametrize("value", [0, 1, None, "True", np.True_, torch.tensor(True), [True]])
def test_what_is_no_flag_is_refused(value: object) -> None:
    assert message_of(check_flag, "flip", value) == f"flip must be True or False, got {value!r}."


@pytest.mark.parametrize("choices", [("mean", "none"), ["mean", "none"], {"mean": 1, "none": 2}])
def test_choices_pass(choices: object) -> None:
    for value in ("mean", "none"):
        check_choice("reduction", value, choices)


@pytest.mark.parametrize("value", ["sum", "", "mea", "Mean", None, True, 0, ["mean"], ("mean",)])
def test_what_is_none_of_the_choices_is_refused_by_naming_them(value: object) -> None:
    expected = f"reduction must be one of mean, none, got {value!r}."
    assert message_of(check_choice, "reduction", value, ("mean", "none")) == expected
    assert message_of(check_choice, "reduction", value, ("mean", "none")) == expected


# -- where a warning points ------------------------------------------------------------------------


def line_of(warning: warnings.WarningMessage) -> str:
    """The line of source that a warning points at."""
    return linecache.getline(warning.filename, warning.lineno).strip()


def test_a_warning_points_at_the_call_into_the_package() -> None:
    _warn_of_assumed_camera.cache_clear()
    joints = torch.zeros(2, 1, 16, 3)
    with pytest.warns(PoseAugWarning, match="no camera given") as warned:
        batch_intrinsics(None, joints)
    assert warned[0].filename == __file__
    assert line_of(warned[0]) == "batch_intrinsics(None, joints)"


def test_a_warning_points_out_of_all_of_the_package() -> None:
    _warn_of_assumed_camera.cache_clear()
    hook = PoseAugHook(nn.Linear(32, 48), skeleton="h36m_16", preset="random")
    batch = make_batch()
    with pytest.warns(PoseAugWarning, match="no camera given") as warned:
        hook.augment(batch.inputs_2d, batch.inputs_3d)
    assert warned[0].filename == __file__
    assert line_of(warned[0]) == "hook.augment(batch.inputs_2d, batch.inputs_3d)"


def test_a_warning_of_ones_own_points_at_itself() -> None:
    with pytest.warns(PoseAugWarning, match="careful") as warned:
        warn("careful")
    assert warned[0].filename == __file__
    assert line_of(warned[0]) == 'warn("careful")'


def test_a_file_beside_the_package_is_not_of_it() -> None:
    # The folder's name begins like the package's.
    beside = f"{Path(poseaug_plugin.__file__).parent}_experiments/train.py"
    code = compile('\n\nwarn("careful")', beside, "exec")
    with pytest.warns(PoseAugWarning, match="careful") as warned:
        exec(code, {"warn": warn})
    assert (warned[0].filename, warned[0].lineno) == (beside, 3)


# -- odd values of every field ---------------------------------------------------------------------

ODD = {"-1": -1, "nan": math.nan, "inf": math.inf, "text": "x", "None": None, "True": True}
each_odd = pytest.mark.parametrize("odd", ODD)


@each_odd
@pytest.mark.parametrize("field", [field.name for field in fields(Spread)])
def test_no_field_of_a_spread_takes_an_odd_value(field: str, odd: str) -> None:
    # None of the six is valid for any field.
    message = message_of(Spread, **{field: ODD[odd]})
    assert re.match(f"Spread: {field} must be ", message)
    assert message.endswith(f"got {ODD[odd]!r}.")


@each_odd
@pytest.mark.parametrize(("place", "words"), [(0, "the nearest depth"), (1, "the furthest depth")])
def test_no_end_of_the_depths_takes_an_odd_value(place: int, words: str, odd: str) -> None:
    depth = [0.7, 1.5]
    depth[place] = ODD[odd]
    message = message_of(Spread, depth=tuple(depth))
    assert re.match(f"Spread: {words} must be ", message)
    assert message.endswith(f"got {ODD[odd]!r}.")


@each_odd
@pytest.mark.parametrize("field", [field.name for field in fields(PoseAdapter)])
def test_no_field_of_an_adapter_takes_an_odd_value(field: str, odd: str) -> None:
    # None of the six is valid for any field.
    message = message_of(PoseAdapter, **{field: ODD[odd]})
    assert re.match(f"PoseAdapter: {field} must be ", message)
    assert message.endswith(f"got {ODD[odd]!r}.")


@pytest.mark.parametrize(
    "values",
    [
        {"keep_view": 1.01},
        {"bone_length": 1.01},
        {"torso_length": 1.01},
        {"depth": (0.0, 1.0)},
        {"depth": (1.5, 0.7)},
        {"depth": (0.7, 1.0, 1.5)},
        {"depth": torch.tensor([0.7, 1.5])},
    ],
    ids=repr,
)
def test_a_spread_has_limits(values: dict[str, object]) -> None:
    assert message_of(Spread, **values).startswith("Spread: ")


@pytest.mark.parametrize("field", ["metres_per_unit", "aspect_ratio"])
def test_an_adapter_takes_no_zero(field: str) -> None:
    assert message_of(PoseAdapter, **{field: 0.0}).startswith(f"PoseAdapter: {field} must be ")


@pytest.mark.parametrize("number", [0, 1, 0.5, np.float32(0.5), np.int64(1)], ids=repr)
def test_plain_numbers_are_valid_for_every_width(number: Tensor) -> None:
    for field in fields(Spread):
        if field.name != "depth":
            assert getattr(Spread(**{field.name: number}), field.name) == number
    assert Spread(depth=(1, 1)).depth == (1, 1)
    if number:
        assert PoseAdapter(metres_per_unit=number, aspect_ratio=number).aspect_ratio == number
