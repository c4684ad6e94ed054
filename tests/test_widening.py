"""How widely the policy draws: entropy drives it apart, feedback and critics hold it back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import human_poses
from loops import make_batch, make_hook, make_lifter, mpjpe
from torch import Tensor

from poseaug_plugin import (
    H36M_16,
    AugmentationPolicy,
    PoseAugConfig,
    PoseAugError,
    PoseAugHook,
    Ramp,
    RegressorPolicy,
    Spread,
    root_relative,
)
from poseaug_plugin.losses import guessing_error, limit_feedback
from poseaug_plugin.objectives import feedback_objective
from poseaug_plugin.policy import OPERATIONS, RandomPolicy, SpreadFactors

NARROW = Spread(
    **{"pitch": 0.1, "roll": 0.1, "limb_angle": 0.1},
    **{"bone_angle": 0.03, "torso_angle": 0.06, "bone_length": 0.06, "torso_length": 0.14},
)


def policy_with(**widening: float):
    """A policy whose raw widening is given by the names of the factors."""
    policy = AugmentationPolicy("h36m_16", spread=NARROW).double()
    with torch.no_grad():
        policy.widening.copy_(torch.tensor([widening.get(n, 0.0) for n in SpreadFactors._fields]))
    return policy


def test_factors_start_at_one() -> None:
    assert [factor.item() for factor in policy_with().spread_factors()] == [1] * 5


def test_factors_stay_between_a_third_and_the_default_spread() -> None:
    factors = policy_with(pitch=100, roll=-100, bone_length=100).spread_factors()
    expected = [0.5 / 0.1, 1 / 3, 1, 1, 0.35 / 0.14]
    assert [factor.item() for factor in factors] == pytest.approx(expected)


@pytest.mark.parametrize("name", SpreadFactors._fields)
def test_a_factor_is_one_on_its_spread(name: str) -> None:
    policy = policy_with(**{name: 0.01})
    factor = getattr(policy.spread_factors(), name).item()
    assert factor > 1.2
    spread = policy.base.spread
    of_torso = {"bone_angle": ["torso_angle"], "bone_length": ["torso_length"]}
    multiplied = [name, *of_torso.get(name, [])]
    wider = replace(spread, **{one: getattr(spread, one) * factor for one in multiplied})
    torch.manual_seed(0)
    joints = torch.randn(5, 1, 16, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 5.0])
    noise = torch.randn(5, policy.noise_size, dtype=torch.float64)
    base = RandomPolicy("h36m_16", spread=wider).double()
    expected = base(joints, noise[:, : base.noise_size])
    for got, wanted in zip(policy(joints, noise), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_base_gets_wider_than_the_default_one() -> None:
    base = Spread(pitch=0.6, roll=9.0, limb_angle=0.15, bone_angle=0.0, torso_angle=0.0)
    policy = AugmentationPolicy("h36m_16", spread=base).double()
    with torch.no_grad():
        policy.widening.fill_(100.0)
    factors = [factor.item() for factor in policy.spread_factors()]
    assert factors == pytest.approx([1, 1, 2, 1, 1], abs=2e-3)
    with torch.no_grad():
        policy.widening.fill_(-100.0)
    assert [f.item() for f in policy.spread_factors()] == pytest.approx([1 / 3] * 5)


@pytest.mark.parametrize("name", ["angle", "length"])
@pytest.mark.parametrize(("bone", "torso"), [(0.5, 0.8), (0.8, 0.5), (0.8, 0), (0, 0.8)], ids=str)
def test_neither_torso_nor_limbs_get_wider_than_by_default(
    name: str, bone: float, torso: float
) -> None:
    times = {f"bone_{name}": bone, f"torso_{name}": torso}
    base = Spread(**{one: factor * getattr(Spread(), one) for one, factor in times.items()})
    policy = AugmentationPolicy("h36m_16", spread=base).double()
    with torch.no_grad():
        policy.widening.fill_(100.0)
    factor = getattr(policy.spread_factors(), f"bone_{name}").item()
    assert factor == pytest.approx(1 / 0.8)


def test_entropy_is_the_sum_of_the_log_factors() -> None:
    policy = policy_with(
        pitch=0.01, roll=-0.02, limb_angle=-0.01, bone_angle=0.03, bone_length=0.005
    )
    factors = torch.stack(list(policy.spread_factors()))
    torch.testing.assert_close(policy.entropy(), factors.log().sum())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_switched_off_has_no_entropy(operation: str) -> None:
    policy = AugmentationPolicy("h36m_16", operations=(operation,))
    policy.entropy().backward()
    moved = [factor != 0 for factor in policy.widening.grad.tolist()]
    used = {
        "rigid": [1, 1, 0, 0, 0],
        "bone_angle": [0, 0, 1, 1, 0],
        "bone_length": [0, 0, 0, 0, 1],
        "focal_length": [0, 0, 0, 0, 0],
    }
    assert moved == used[operation]


def test_policies_without_learned_spreads_have_none() -> None:
    assert RandomPolicy("h36m_16").entropy() is None
    assert RegressorPolicy("h36m_16", width=8).entropy() is None


def test_guessing_is_answering_with_the_mean_pose() -> None:
    joints = human_poses(6, 1, H36M_16, torch.Generator().manual_seed(0))[:, 0]
    joints = root_relative(joints, H36M_16)
    guess = joints[:4].mean(0)
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    errors = guessing_error(joints, weights, "mpjpe", H36M_16)
    torch.testing.assert_close(errors, (joints - guess).norm(dim=-1).mean(1, keepdim=True))
    # In the kind of error that it is compared with.
    squares = guessing_error(joints, weights, "squared_norm", H36M_16)
    torch.testing.assert_close(squares, (joints - guess).square().sum((1, 2))[:, None])
    assert guessing_error(joints, weights, "grouped", H36M_16).shape == (6, 3)


def test_limit_is_on_the_batch_not_on_a_pose() -> None:
    guessing = torch.full((4, 1), 0.2)
    error = torch.tensor([[0.05], [0.05], [0.2], [0.2]])  # half of it on (geometric) average
    weights = torch.ones(4)
    assert limit_feedback(error, guessing, 0.5, weights).item() == pytest.approx(0, abs=1e-6)
    assert limit_feedback(error, guessing, 0.6, weights) == 0
    excess = limit_feedback(error, guessing, 0.3, weights)
    assert excess.item() == pytest.approx(math.log(0.5 / 0.3), abs=1e-6)
    assert limit_feedback(1000 * error, 1000 * guessing, 0.3, weights).item() == pytest.approx(
        excess.item(), abs=1e-5
    )


def test_limit_leaves_out_samples_without_weight() -> None:
    error, guessing = torch.tensor([[0.4], [0.1]]), torch.tensor([[0.2], [0.2]])
    weights = torch.tensor([0.0, 1.0])
    assert limit_feedback(error, guessing, 0.55, weights) == 0
    assert limit_feedback(error, guessing, 0.55, torch.ones(2)) > 0


def test_nothing_is_gained_by_poses_that_are_hard_to_guess() -> None:
    hook, batch = make_hook(make_lifter()), make_batch()
    hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    trainer = hook._existing_trainer()
    generated = trainer.augmenter.generate(hook._pending.augmented.draft)
    assert generated.poses.moved.requires_grad

    def always_ten_metres(keypoints: Tensor, joints: Tensor) -> Tensor:
        return torch.full((len(keypoints), 1), 10.0)

    loss = feedback_objective(generated, always_ten_metres, trainer.config, 0.0, H36M_16)
    assert loss > 0
    assert not loss.requires_grad


@pytest.mark.parametrize(
    "option",
    [
        {"feedback_limit": 0.0},
        {"feedback_limit": math.nan},
        {"update_batch": 0},
        {"aspect_ratio": 0.0},
    ],
)
def test_a_limit_without_a_meaning_is_refused(option: dict[str, float]) -> None:
    (name,) = option
    with pytest.raises(PoseAugError, match=f"{name} must be positive"):
        make_hook(make_lifter(), **option)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"share": "0.5"}, "share must be a number, got '0.5'"),
        ({"share": True}, "share must be a number, got True"),
        ({"update_batch": 2.5}, "update_batch must be a whole number, got 2.5"),
        ({"width": 64.0}, "width must be a whole number, got 64.0"),
        ({"width": 0}, r"width must lie in \[1, "),
        ({"spread": {"pitch": 0.1}}, r"spread must be a Spread\(.*\), got {'pitch'"),
    ],
)
def test_an_option_of_another_kind_is_refused(option: dict[str, Any], problem: str) -> None:
    with pytest.raises(PoseAugError, match=problem):
        make_hook(make_lifter(), **option)


@pytest.mark.parametrize("depth", [1.0, (0.5,), (0.0, 1.0), (1.5, 0.7)])
def test_depths_that_are_no_pair_are_refused(depth: Any) -> None:
    with pytest.raises(PoseAugError, match=r"depth must be a pair of factors, \(nearest"):
        Spread(depth=depth)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(PoseAugError, match="own_view must be a share, 0 to 1, got"):
        Spread(own_view=share)


def test_numbers_of_numpys_are_numbers() -> None:
    config = PoseAugConfig(share=np.float32(0.25), update_batch=np.int64(64))
    assert (config.share, config.update_batch) == (0.25, 64)


def test_a_number_is_a_ramp_that_stays() -> None:
    assert PoseAugConfig(moved_hardness=1.5).moved_hardness == Ramp(1.5, 1.5)
    assert PoseAugConfig(moved_hardness=(3.0, 5.0)).moved_hardness == Ramp(3.0, 5.0)
    for wrong in ("3", (1.0, 2.0, 3.0), [3.0, 5.0]):
        with pytest.raises(PoseAugError, match=r"moved_hardness must be .*Ramp\(start, end\), got"):
            PoseAugConfig(moved_hardness=wrong)


def factors_after(steps: int, spread: Spread = NARROW, **options: object) -> Tensor:
    """The factors after some steps on a lifter that learns nothing."""
    estimator = make_lifter()
    hook: PoseAugHook = make_hook(estimator, learning_rate=1e-3, spread=spread, **options)
    optimizer = torch.optim.SGD(estimator.parameters(), lr=0.0)
    for seed in range(steps):
        camera, inputs_3d, inputs_2d = make_batch(seed=seed)
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.step()
    return torch.stack(list(hook.policy.spread_factors())).detach()


ENTROPY_ALONE = {"weight_3d": 0.0, "weight_2d": 0.0, "frame_weight": 0.0, "range_weight": 0.0}


def test_entropy_alone_widens_everything() -> None:
    assert (factors_after(10, moved_weight=0.0, **ENTROPY_ALONE) > 1.2).all()


def test_nothing_widens_without_entropy() -> None:
    factors = factors_after(10, moved_weight=0.0, entropy_weight=0.0, **ENTROPY_ALONE)
    assert factors.tolist() == [1] * 5


def test_feedback_holds_back_what_is_too_hard() -> None:
    # A lifter that learns nothing is worse than that, so every way to be easier is taken.
    limited = factors_after(
        10, feedback="estimator", moved_weight=100.0, feedback_limit=0.01, **ENTROPY_ALONE
    )
    assert (limited < 1).any()


WITHOUT_CRITICS = {"weight_3d": 0.0, "weight_2d": 0.0}


def test_ranges_and_frame_object_to_nothing_at_the_default_spread() -> None:
    assert (factors_after(10, Spread(), **WITHOUT_CRITICS) >= 1).all()


def test_ranges_narrow_lengths_beyond_the_default() -> None:
    long = Spread(bone_length=0.3, torso_length=0.7)
    *others, bone_length = factors_after(10, long, **WITHOUT_CRITICS)
    assert bone_length < 0.95
    assert min(others) >= 1
