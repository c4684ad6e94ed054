"""How widely the policy draws: entropy drives it apart, penalties hold it back."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from loops import SmallDefault, augmented, make_batch, make_hook, make_lifter, mpjpe
from torch import Tensor

from poseaug_plugin.augment.policy import (
    FACTORS,
    OPERATIONS,
    AugmentationPolicy,
    RandomPolicy,
    Spread,
)
from poseaug_plugin.errors import PoseAugError
from poseaug_plugin.options import Options, Surroundings, Training
from poseaug_plugin.reference.regressors import RegressorPolicy

NARROW = Spread(
    **{"pitch": 0.1, "roll": 0.1, "limb_angle": 0.1},
    **{"bone_angle": 0.03, "torso_angle": 0.06, "bone_length": 0.06, "torso_length": 0.14},
)


def policy_with(**widening: float):
    """A policy whose raw widening is given by the names of the factors."""
    policy = AugmentationPolicy("h36m_16", spread=NARROW).double()
    with torch.no_grad():
        policy.widening.copy_(torch.tensor([widening.get(n, 0.0) for n in FACTORS]))
    return policy


def test_factors_start_at_one() -> None:
    assert [factor.item() for factor in policy_with().spread_factors().values()] == [1] * 5


def test_factors_stay_between_a_third_and_the_default_spread() -> None:
    factors = policy_with(pitch=100, roll=-100, bone_length=100).spread_factors().values()
    expected = [0.5 / 0.1, 1 / 3, 1, 1, 0.35 / 0.14]
    assert [factor.item() for factor in factors] == pytest.approx(expected)


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_is_one_on_its_spread(name: str) -> None:
    policy = policy_with(**{name: 0.01})
    factor = policy.spread_factors()[name].item()
    assert factor > 1.2
    spread = policy.spread
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
    factors = [factor.item() for factor in policy.spread_factors().values()]
    assert factors == pytest.approx([1, 1, 2, 1, 1], abs=2e-3)
    with torch.no_grad():
        policy.widening.fill_(-100.0)
    assert [f.item() for f in policy.spread_factors().values()] == pytest.approx([1 / 3] * 5)


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
    factor = policy.spread_factors()[f"bone_{name}"].item()
    assert factor == pytest.approx(1 / 0.8)


def test_entropy_is_the_sum_of_the_log_factors() -> None:
    policy = policy_with(
        pitch=0.01, roll=-0.02, limb_angle=-0.01, bone_angle=0.03, bone_length=0.005
    )
    factors = torch.stack(list(policy.spread_factors().values()))
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


# -- what a spread may be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "problem"),
    [
        (1.0, r"depth must be a pair of factors, \(nearest"),
        ((0.5,), r"depth must be a pair of factors, \(nearest"),
        ((0.5, 1.0, 2.0), r"depth must be a pair of factors, \(nearest"),
        ((0.0, 1.0), "the nearest depth must be a number, at least 0.001, got 0.0"),
        ((math.nan, 1.0), "the nearest depth must be a number, at least 0.001, got nan"),
        ((1.5, 0.7), "the furthest depth must be a number, at least 1.5, got 0.7"),
        ((1.5, math.inf), "the furthest depth must be a number, at least 1.5, got inf"),
        (("a", 1.0), "the nearest depth must be a number, at least 0.001, got 'a'"),
    ],
    ids=str,
)
def test_depths_that_are_no_pair_are_refused(depth: Any, problem: str) -> None:
    with pytest.raises(PoseAugError, match=problem):
        Spread(depth=depth)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(PoseAugError, match="keep_view must be a number from 0 to 1, got"):
        Spread(keep_view=share)


@pytest.mark.parametrize("name", [f.name for f in fields(Spread) if f.name != "depth"])
@pytest.mark.parametrize("width", [-0.1, math.nan, math.inf, "0.1", True, None], ids=str)
def test_widths_that_are_none_are_refused(name: str, width: Any) -> None:
    with pytest.raises(PoseAugError, match=rf"Spread: {name} must be a number.*, got {width!r}"):
        Spread(**{name: width})


# -- what moves them -------------------------------------------------------------------------------


class Quick(SmallDefault):
    """The default at ten times its learning rate, with some of its terms alone."""

    def __init__(self, *terms: str) -> None:
        super().__init__(before_update=lambda *_: 1e-3)
        self.kept = terms

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        training = super().build(options, surroundings)
        assert training.terms is not None
        return training._replace(terms={name: training.terms[name] for name in self.kept})


def factors_after(steps: int, *terms: str, spread: Spread = NARROW, **options: Any) -> Tensor:
    """The factors after some steps on a lifter that learns nothing, by these terms alone."""
    estimator = make_lifter()
    hook = make_hook(estimator, preset=Quick(*terms), spread=spread, feedback=False, **options)
    optimizer = torch.optim.SGD(estimator.parameters(), lr=0.0)
    for seed in range(steps):
        inputs_2d, inputs_3d = augmented(hook, make_batch(seed=seed))
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.step()
    return torch.stack(list(hook.policy.spread_factors().values())).detach()


def test_entropy_alone_widens_everything() -> None:
    assert (factors_after(10, "entropy") > 1.2).all()


def test_nothing_widens_without_entropy() -> None:
    factors = factors_after(10, "entropy", entropy_weight=0.0)
    assert factors.tolist() == [1] * 5


def test_ranges_and_frame_object_to_nothing_at_the_default_spread() -> None:
    factors = factors_after(10, "range", "frame", "entropy", spread=Spread(), critic_weight=0)
    assert (factors >= 1).all()


def test_ranges_narrow_lengths_beyond_the_default() -> None:
    long = Spread(bone_length=0.3, torso_length=0.7)
    *others, bone_length = factors_after(
        10, "range", "frame", "entropy", spread=long, critic_weight=0
    )
    assert bone_length < 0.95
    assert min(others) >= 1
