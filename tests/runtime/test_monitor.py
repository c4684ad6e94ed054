"""The monitor: running means on the device, and a warning with a remedy where one is bad."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import fields

import pytest
import torch

from poseaug_plugin import PoseAugHook, PoseAugWarning, Spread
from poseaug_plugin.runtime.monitor import Diagnostics, Monitor

CRITICS = ("critic_3d", "critic_2d")


def new_monitor() -> Monitor:
    return Monitor(CRITICS, True)


def monitor_with(
    times: int = 10, skipped: bool = False, reads_spread: bool = True, **readings: float
) -> Monitor:
    """A monitor that was told the same over and over."""
    monitor = Monitor(CRITICS, reads_spread)
    for _ in range(times):
        monitor.counts[0].add_(2)
        monitor.record(
            torch.tensor(skipped), **{name: torch.tensor(value) for name, value in readings.items()}
        )
    return monitor


FINE = {
    "strength": 0.9,
    "hardness_ratio": 2.0,
    "mean_pose_ratio": 0.3,
    "critic_3d": 0.6,
    "critic_2d": 0.7,
    "kept_share": 0.9,
    "angle_change": 0.1,
    "length_change": 0.1,
    "diversity": 0.9,
}


def test_fine_readings_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor_with(**FINE).read(500)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ({"diversity": 0.1}, r"nearly the same \(0\.10 of .*Start over with another seed"),
        ({"kept_share": 0.25}, r"only 25% of .*Check hook\.check_batch.*further away: spread"),
        ({"times": 60, "skipped": True}, r"60 updates were left out.*Check hook\.check_batch"),
    ],
)
def test_bad_reading_is_warned_of_with_a_remedy(reading: dict[str, float], words: str) -> None:
    with pytest.warns(PoseAugWarning, match=words) as caught:
        monitor_with(**{**FINE, **reading}).read(500)
    assert len(caught) == 1


def test_the_spread_is_no_remedy_for_a_policy_that_does_not_read_it() -> None:
    with pytest.warns(PoseAugWarning, match="aspect_ratio") as caught:
        monitor_with(reads_spread=False, **{**FINE, "kept_share": 0.25}).read(500)
    assert "spread" not in str(caught[0].message).split("PoseAugHook: ")[1]


def test_left_out_updates_are_a_share_of_those_that_learn() -> None:
    # Of 480 updates one in eight learns.
    with pytest.warns(PoseAugWarning, match="60 updates were left out"):
        monitor_with(60, skipped=True, **FINE).read(8 * 60)
    monitor = monitor_with(60, **FINE)
    for _ in range(5):
        monitor.record(torch.tensor(True), diversity=torch.tensor(0.9))
    monitor.read(65)
    monitor.read(8 * 65)  # 5 of 65 are few
    for _ in range(10):
        monitor.record(torch.tensor(True), diversity=torch.tensor(0.9))
    with pytest.warns(PoseAugWarning, match="15 updates were left out"):
        monitor.read(8 * 75)


def test_bad_reading_is_warned_of_once() -> None:
    monitor = monitor_with(**{**FINE, "diversity": 0.1})
    with pytest.warns(PoseAugWarning):
        monitor.read(500)
    monitor.read(600)


def test_bad_readings_of_the_first_updates_are_not_warned_of() -> None:
    monitor_with(**{**FINE, "diversity": 0.1}).read(99)


def test_critics_that_tell_everything_apart_are_no_reason_to_warn() -> None:
    monitor_with(**{**FINE, "critic_3d": 1.0, "critic_2d": 1.0}).read(500)


def test_remedies_name_what_exists() -> None:
    bad = {**FINE, "diversity": 0.1, "kept_share": 0.1, "times": 60, "skipped": True}
    with pytest.warns(PoseAugWarning) as caught:
        monitor_with(**bad).read(500)
    assert len(caught) == 3
    text = " ".join(str(warning.message) for warning in caught)
    named = set(re.findall(r"\b[a-z]+_[a-z_0-9]+\b", text))
    assert named == {"check_batch", "aspect_ratio"}
    assert set(re.findall(r"(\w+)=", text)) == {"spread", "depth"}
    options = inspect.signature(PoseAugHook).parameters
    assert "spread" in options
    assert "seed" in options
    assert "depth" in {field.name for field in fields(Spread)}


def test_means_of_few_readings_are_plain_means() -> None:
    monitor = new_monitor()
    for value in (1.0, 2.0, 6.0):
        monitor.record(torch.tensor(False), diversity=torch.tensor(value))
    assert monitor.read(3).diversity == pytest.approx(3.0)


def test_old_readings_are_forgotten() -> None:
    monitor = monitor_with(200, diversity=1.0)
    for _ in range(300):
        monitor.record(torch.tensor(False), diversity=torch.tensor(2.0))
    assert monitor.read(3).diversity == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_readings_that_are_not_finite_are_left_out(value: float) -> None:
    monitor = new_monitor()
    for reading in (1.0, value, 3.0):
        monitor.record(torch.tensor(False), diversity=torch.tensor(reading))
    assert monitor.read(3).diversity == pytest.approx(2.0)


def test_counts_add_up() -> None:
    diagnostics = monitor_with(7, skipped=True, **FINE).read(50)
    assert diagnostics.unusable_samples == 14
    assert diagnostics.skipped_steps == 7
    assert diagnostics.updates == 50


def means_of(diagnostics: Diagnostics) -> dict[str, float]:
    found = diagnostics._asdict()
    for other in ("updates", "unusable_samples", "skipped_steps", "learned"):
        del found[other]
    return found | found.pop("critic_accuracy")


def test_unread_values_are_nan() -> None:
    means = means_of(new_monitor().read(0))
    assert len(means) == len(FINE)
    assert all(value != value for value in means.values())


@pytest.mark.parametrize(
    ("change", "degrees"), [(0.0, 0.0), (0.5, 60.0), (1.0, 90.0), (2.0, 180.0)]
)
def test_angle_change_is_in_degrees(change: float, degrees: float) -> None:
    read = monitor_with(angle_change=change).read(1)
    assert read.angle_change == pytest.approx(degrees, abs=1e-3)


@pytest.mark.parametrize("change", [-1e-7, 2.0000002])
def test_angle_change_beyond_the_ends_by_rounding(change: float) -> None:
    assert monitor_with(angle_change=change).read(1).angle_change in (0.0, 180.0)


def test_monitor_takes_every_reading_of_the_diagnostics() -> None:
    means = means_of(monitor_with(**FINE).read(50))
    assert set(means) == set(FINE)
    for name in FINE.keys() - {"angle_change"}:
        assert means[name] == pytest.approx(FINE[name])
