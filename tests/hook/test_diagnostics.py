"""`diagnostics` are plain numbers that lie where they can, `losses` tensors on the device.

What an update needs is kept from `augment` to the step without a graph.
"""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from loops import HOOKS, PUBLISHED, augmented, make_batch, make_hook, make_lifter, mpjpe, trained
from torch import Tensor
from torch.utils._pytree import tree_leaves

from poseaug_plugin import PoseAugHook, Spread
from poseaug_plugin.reference.recipes import Released

CRITICS = {"critic_3d", "critic_2d"}
each_hook = pytest.mark.parametrize("hook", HOOKS)


@lru_cache
def sample(name: str) -> PoseAugHook:
    """A trained hook to look at."""
    return trained(**HOOKS[name])


def missing(hook: PoseAugHook) -> set[str]:
    """What does not apply."""
    found = hook.diagnostics()._asdict()
    return {name for name, value in found.items() if value != value}


@each_hook
def test_diagnostics_are_plain_numbers(hook: str) -> None:
    diagnostics = sample(hook).diagnostics()._asdict()
    accuracy = diagnostics.pop("critic_accuracy")
    assert type(accuracy) is dict
    assert diagnostics.pop("learned")
    assert {type(value) for value in diagnostics.values()} == {int, float}
    assert {type(value) for value in accuracy.values()} <= {float}


@each_hook
def test_diagnostics_lie_where_they_can(hook: str) -> None:
    d = sample(hook).diagnostics()
    assert d.updates == 3
    assert 0 <= d.kept_share <= 1
    assert 0 <= d.angle_change <= 180
    assert 0 <= d.length_change < 1
    assert d.diversity > 0
    assert d.unusable_samples == d.skipped_steps == 0
    assert all(0 <= accuracy <= 1 for accuracy in d.critic_accuracy.values())


def test_default_preset_reports_everything() -> None:
    d = sample("default").diagnostics()
    assert missing(sample("default")) == set()
    assert set(d.critic_accuracy) == CRITICS
    assert 0 <= d.strength <= 1
    assert d.hardness_ratio > 0
    assert d.mean_pose_ratio > 0


@pytest.mark.parametrize("hook", ["without feedback", "random"])
def test_without_feedback_there_is_no_strength(hook: str) -> None:
    assert missing(sample(hook)) == {"strength"}


@pytest.mark.parametrize("hook", ["without critics", "random"])
def test_without_critics_nobody_tells_poses_apart(hook: str) -> None:
    assert sample(hook).diagnostics().critic_accuracy == {}


@pytest.mark.parametrize("operation", ["bone_angle", "bone_length", "rigid"])
def test_diagnostics_of_a_single_operation(operation: str) -> None:
    d = trained(operations=(operation,)).diagnostics()
    assert (d.angle_change > 1) == (operation == "bone_angle")
    assert (d.length_change > 0.01) == (operation == "bone_length")


def test_without_augmented_samples_there_is_no_hardness_ratio() -> None:
    # And not a ratio of 0.
    hook = trained(share=1.0, spread=Spread(depth=(0.01, 0.02), keep_view=0))
    diagnostics = hook.diagnostics()
    assert diagnostics.kept_share == 0
    assert diagnostics.hardness_ratio != diagnostics.hardness_ratio
    assert diagnostics.mean_pose_ratio != diagnostics.mean_pose_ratio


@pytest.mark.parametrize(("hook", "draws"), [("default", True), ("random", True), ("paper", False)])
def test_a_remedy_names_the_spread_where_the_policy_draws_from_one(hook: str, draws: bool) -> None:
    assert sample(hook)._trainer.monitor.reads_spread == draws  # type: ignore[union-attr]


@each_hook
def test_losses_are_tensors_on_the_device(hook: str) -> None:
    losses = sample(hook).losses
    assert all(isinstance(value, Tensor) and value.dim() == 0 for value in losses.values())
    assert not any(value.requires_grad for value in losses.values())


def test_losses_have_the_networks_names_and_the_terms() -> None:
    terms = {f"policy/{name}" for name in ("range", "frame", "entropy", *CRITICS)}
    assert set(sample("default").losses) == {"policy", *CRITICS, *terms}
    assert set(sample("random").losses) == set()
    assert set(make_hook(make_lifter()).losses) == {"policy", *CRITICS, *terms}


def test_losses_before_the_first_update_are_nan() -> None:
    hook = make_hook(make_lifter())
    augmented(hook, make_batch())
    assert all(math.isnan(value) for value in hook.losses.values())


@pytest.mark.parametrize("hook", ["default", "without critics", "paper", "released"])
def test_total_loss_is_the_sum_of_its_terms(hook: str) -> None:
    losses = sample(hook).losses
    terms = [value for name, value in losses.items() if name.startswith("policy/")]
    assert len(terms) > 2
    torch.testing.assert_close(losses["policy"], torch.stack(terms).sum())


def test_losses_are_copies() -> None:
    hook = trained()
    before = hook.losses["policy"].item()
    hook.losses["policy"].fill_(7.0)
    assert hook.losses["policy"].item() == before


def test_repr_tells_the_skeleton_and_the_updates() -> None:
    assert repr(sample("default")) == "PoseAugHook(skeleton=h36m_16, updates=3, enabled=True)"
    unknown = make_hook(make_lifter(), skeleton=None)
    assert repr(unknown) == "PoseAugHook(skeleton=not known yet, updates=0, enabled=True)"


# -- between augment and the update ----------------------------------------------------------------


def test_augment_keeps_no_graph() -> None:
    hook = make_hook(make_lifter())
    augmented(hook, make_batch())
    tensors = [value for value in tree_leaves(hook._pending) if isinstance(value, Tensor)]
    assert len(tensors) > 10
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_policys_statistics_move_once_per_update() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, preset=Released(**PUBLISHED), total_updates=100)
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    batch = make_batch()
    before = {name: b.clone() for name, b in hook.policy.named_buffers()}
    for _ in range(2):  # as with accumulated gradients: two batches, one step
        made_2d, made_3d = augmented(hook, batch)
        mpjpe(estimator(made_2d), made_3d).backward()
    assert all(torch.equal(b, before[name]) for name, b in hook.policy.named_buffers())
    optimizer.step()
    counts = [b for name, b in hook.policy.named_buffers() if name.endswith("batches_tracked")]
    assert len(counts) > 0
    assert all(count == 1 for count in counts)
