"""The trainings that ``paper`` and ``released`` make, row by row of docs/fidelity.md."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from loops import PUBLISHED, adam, differences, frozen_state, make_hook, make_lifter, stream, train
from torch import nn

from poseaug_plugin import PoseAdapter, PoseAugError
from poseaug_plugin.adversary.critics import Terms, adversarial_term, range_term
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.options import Options, Surroundings, Training, UpdateContext
from poseaug_plugin.reference.recipes import (
    EstimatorFeedback,
    Paper,
    Ramp,
    Released,
    both_sided_term,
    project_clamped,
    released_frame_check,
    released_range_term,
)
from poseaug_plugin.runtime.isolation import TorchDefaults
from poseaug_plugin.runtime.optimizer import GuardedAdam

PRESETS = {"paper": Paper, "released": Released}
each_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def built(preset: Paper, **options: Any) -> Training:
    surroundings = Surroundings(
        nn.Identity(), PoseAdapter(aspect_ratio=0.5), H36M_16, torch.Generator()
    )
    return preset.build(Options(total_updates=20, **options), surroundings)


def terms_of(training: Training) -> Terms:
    assert training.terms is not None
    return training.terms


# -- arguments -------------------------------------------------------------------------------------


def hardness_of(preset: Paper) -> list[Ramp]:
    feedback = terms_of(built(preset))["feedback"]
    return [hardness for _, hardness, *_ in feedback.cases]


def test_a_number_is_a_ramp_that_stays() -> None:
    assert hardness_of(Paper(width=4, moved_hardness=1.5)) == [Ramp(1.5, 1.5)]
    assert hardness_of(Paper(width=4, moved_hardness=2)) == [Ramp(2, 2)]
    ramps = hardness_of(Released(width=4, bent_hardness=Ramp(3.0, 4.0)))
    assert ramps == [Ramp(3.0, 4.0), Ramp(17.0, 17.0)]
    assert all(isinstance(ramp, Ramp) for ramp in ramps)


@each_preset
@pytest.mark.parametrize("name", ["bent_hardness", "moved_hardness"])
@pytest.mark.parametrize(
    "value",
    [
        *("3", (1.0, 2.0, 3.0), (1.0,), (), [3.0, 5.0], None, True),
        *((1.0, math.nan), (-1.0, 1.0), (1.0, "5"), math.inf, 1e7),
    ],
    ids=str,
)
def test_hardness_that_is_no_ramp_is_refused(preset: type[Paper], name: str, value: Any) -> None:
    with pytest.raises(PoseAugError, match=rf"{name}.* must be a number.*, got "):
        preset(**{name: value})


WEIGHTS = ("bent_weight", "moved_weight", "weight_3d", "weight_2d")
NUMBERS = (*WEIGHTS, "warmup", "learning_rate", "width", "pool_capacity")


def test_every_number_is_tried() -> None:
    others = {"kcs", "bent_hardness", "moved_hardness"}
    assert {field.name for field in fields(Paper)} == set(NUMBERS) | others


@each_preset
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", True, None, 1e7], ids=str)
def test_numbers_out_of_range_are_refused(preset: type[Paper], name: str, value: Any) -> None:
    with pytest.raises(PoseAugError, match=rf"{name} must be a.*, got {value!r}"):
        preset(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"width": 0}, "width must be a whole number from 1 "),
        ({"width": 64.0}, "width must be a whole number .*, got 64.0"),
        ({"pool_capacity": 0.5}, "pool_capacity must be a whole number from 0"),
        ({"warmup": 1.1}, "warmup must be a number from 0 to 1, got 1.1"),
        ({"learning_rate": 2}, "learning_rate must be a number from 0 to 1, got 2"),
        ({"kcs": "limbs"}, "kcs must be one of parts, whole, got 'limbs'"),
        ({"kcs": None}, "kcs must be one of parts, whole, got None"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(PoseAugError, match=problem):
        Released(**wrong)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="fixed_trunk"):
        Released(fixed_trunk=False)  # type: ignore[call-arg]


# -- what is made ----------------------------------------------------------------------------------


def test_names_and_shares() -> None:
    assert [(p.name, p.share) for p in PRESETS.values()] == [("paper", 0.5), ("released", 0.5)]


def test_rows_of_the_paper() -> None:
    training = built(Paper())
    terms = terms_of(training)
    assert list(terms) == ["critic_3d", "critic_2d", "feedback", "range"]
    assert [critic.weight for critic in training.critics] == [1.0, 1.0]
    *adversarial, feedback, ranges = terms.values()
    assert all(term.func is adversarial_term for term in adversarial)
    assert isinstance(feedback, EstimatorFeedback)
    (moved,) = feedback.cases
    assert moved[:2] == (1.0, Ramp(3.0, 5.0))
    assert (feedback.error, feedback.mode, feedback.warmup) == ("squared_norm", "frozen", 0.04)
    assert ranges.func is range_term
    assert ranges.keywords == {"weight": 1.0, "length_limit": 0.1}
    assert training.policy.network.branches == 1
    assert (training.policy.free_bones == 1).all()
    assert (training.policy.free_lengths == 1).all()


def test_rows_of_the_released_code() -> None:
    training = built(Released())
    terms = terms_of(training)
    assert list(terms) == ["critic_3d", "critic_2d", "feedback", "range"]
    assert [critic.weight for critic in training.critics] == [6.0, 1.0]
    *adversarial, feedback, ranges = terms.values()
    assert all(term.func is both_sided_term for term in adversarial)
    assert isinstance(feedback, EstimatorFeedback)
    bent, moved = feedback.cases
    assert bent[:3] == (0.1, Ramp(3.0, 5.0), 2.0)
    assert moved[:3] == (0.01, Ramp(17.0, 17.0), 15.0)
    assert (feedback.error, feedback.mode, feedback.warmup) == ("grouped", "as_found", 0.04)
    assert ranges is released_range_term
    assert training.frame_check is released_frame_check
    assert training.policy.network.branches == 4
    assert not (training.policy.free_bones == 1).all()


@each_preset
def test_rows_of_both(preset: type[Paper]) -> None:
    training = built(preset())
    assert training.learn_from is None
    assert training.interval == 1
    assert [critic.interval for critic in training.critics] == [2, 2]
    assert training.pool_capacity == 4096
    assert training.controller is None
    assert training.project is project_clamped
    widths = [layer.weight.shape[-2] for layer in training.critics[0].children()]
    assert widths == [256, 256, 256, 100, 1]
    assert training.critics[1].layer_1.weight.shape[0] == 100
    assert training.policy.network.inputs.weight.shape[1] == 256


def test_the_paper_looks_at_four_sides_of_the_frame() -> None:
    check = built(Paper()).frame_check
    points = torch.tensor([[0.0, 0, 5], [-4.9, 0, 5], [-5.1, 0, 5], [0, -2.6, 5], [0, 0, -5]])
    intrinsics = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0, 0]])
    keypoints = project_clamped(points[None], intrinsics)
    assert check(points[None], keypoints, intrinsics, 0.5).tolist() == [
        [True, True, False, False, False]
    ]


@each_preset
def test_arguments_reach_the_networks(preset: type[Paper]) -> None:
    training = built(
        preset(width=8, kcs="whole", pool_capacity=7, weight_3d=2.0, weight_2d=3.0),
        operations=("bone_angle",),
    )
    assert training.critics[0].layer_1.weight.shape[:2] == (1, 8)
    assert [critic.weight for critic in training.critics] == [2.0, 3.0]
    assert training.pool_capacity == 7
    assert training.policy.operations == ("bone_angle",)


@each_preset
@pytest.mark.parametrize("which", ["3d", "2d"])
def test_critics_without_weight_are_no_terms(preset: type[Paper], which: str) -> None:
    training = built(preset(width=8, **{f"weight_{which}": 0.0}))
    other = {"3d": "critic_2d", "2d": "critic_3d"}[which]
    assert list(terms_of(training)) == [other, "feedback", "range"]


# -- what changes over the training ----------------------------------------------------------------


@each_preset
def test_progress_and_rates_follow_the_updates(preset: type[Paper]) -> None:
    training = built(preset(width=4, learning_rate=0.5))
    feedback = terms_of(training)["feedback"]
    assert isinstance(feedback, EstimatorFeedback)
    assert training.before_update is not None
    for updates, progress in ((0, 0.0), (1, 0.05), (10, 0.5), (20, 1.0), (30, 1.0)):
        context = UpdateContext(None, None, TorchDefaults.found())
        assert training.before_update(updates, context) == pytest.approx(0.5 * (1 - progress))
        assert feedback.progress == progress


def test_nothing_learns_after_the_last_update() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, preset=Released(**PUBLISHED), total_updates=3)
    optimizer = adam(estimator)
    train(hook, estimator, optimizer, stream(3))
    before = dict(hook.policy.state_dict())
    before = {k: v.clone() for k, v in before.items() if "running" not in k and "num_b" not in k}
    train(hook, estimator, optimizer, stream(2, seed=1))
    after = {k: v for k, v in hook.policy.state_dict().items() if k in before}
    assert differences(before, after) == []


def test_a_loaded_hook_steps_at_the_rate_of_its_own_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the one that was saved had another, and another length."""
    estimator = make_lifter()
    saved = make_hook(estimator, preset=Released(**PUBLISHED, learning_rate=1e-2), total_updates=9)
    train(saved, estimator, adam(estimator), stream(3))
    state = frozen_state(saved)
    saved.remove()
    rates: list[float] = []
    set_rate = GuardedAdam.set_learning_rate

    def watched(optimizer: GuardedAdam, rate: float) -> None:
        rates.append(rate)
        set_rate(optimizer, rate)

    monkeypatch.setattr(GuardedAdam, "set_learning_rate", watched)
    hook = make_hook(estimator, preset=Released(**PUBLISHED, learning_rate=1e-3), total_updates=30)
    hook.load_state_dict(state)
    train(hook, estimator, adam(estimator), stream(1))
    assert rates == pytest.approx([1e-3 * (1 - 3 / 30)] * 3)
