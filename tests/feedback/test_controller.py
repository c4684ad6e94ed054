"""The feedback controller: draws get milder while the estimator does no better than the mean pose.

Its strength stays 1 for an estimator that learns, falls and returns inside [0, 1], moves by nothing
but observed errors, and is state like everything else.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from loops import (
    OPTIMIZERS,
    absolute_batch,
    adam,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
    without_trajectory,
)
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, HostPoses, PoseAugHook, RandomPolicy, Spread
from poseaug_plugin.augment.transforms import apply_augmentation
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.feedback.controller import FeedbackController, observed_errors

OUT_OF_SIGHT = Spread(depth=(0.01, 0.02), keep_view=0)


# -- the controller by itself ----------------------------------------------------------------------


def new_controller() -> FeedbackController:
    return FeedbackController(AugmentationPolicy("h36m_16").strength)


def move(
    controller: FeedbackController, ratio: float, times: int = 1, original: float = 0.1
) -> list[float]:
    """The strengths after observing the same ratio of errors over and over."""
    strengths = []
    for _ in range(times):
        controller.move(torch.tensor([0.3 * ratio, original, 0.3]), torch.tensor(True))
        strengths.append(controller.strength.item())
    return strengths


def test_strength_begins_at_one() -> None:
    assert new_controller().strength.item() == 1


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.9])
def test_strength_stays_exactly_one_while_the_estimator_does_better(ratio: float) -> None:
    assert set(move(new_controller(), ratio, 1500)) == {1.0}


@pytest.mark.parametrize("ratio", [1.0, 1.3, 50.0])
def test_strength_falls_to_zero_and_no_further_while_it_does_not(ratio: float) -> None:
    strengths = move(new_controller(), ratio, 1500)
    assert strengths[5] == 1  # one that has only begun keeps the full strength for a while
    assert all(later <= earlier for earlier, later in pairwise(strengths))
    assert any(0 < strength < 1 for strength in strengths)
    assert strengths[-1] == 0
    assert min(strengths) == 0


def test_strength_returns_to_exactly_one() -> None:
    controller = new_controller()
    move(controller, 1.2, 2000)
    strengths = move(controller, 0.5, 1500)
    assert strengths[0] == 0
    assert strengths[-1] == 1
    assert max(strengths) == 1


@pytest.mark.parametrize("ratio", [0.5, 1.3])
def test_an_estimator_that_is_no_better_on_originals_tells_nothing(ratio: float) -> None:
    controller = new_controller()
    move(controller, 1.2, 60)
    state = copy.deepcopy(controller.state_dict())
    move(controller, ratio, 100, original=0.31)
    assert differences(dict(state), dict(controller.state_dict())) == []
    move(controller, ratio, 1, original=torch.nan)  # no originals were left in the batch
    assert differences(dict(state), dict(controller.state_dict())) != []


def test_an_outlier_does_not_hold_the_strength_down() -> None:
    steady, disturbed = new_controller(), new_controller()
    for controller in (steady, disturbed):
        move(controller, 0.5, 300)
    move(disturbed, 1e6)
    assert move(disturbed, 0.5, 300) == move(steady, 0.5, 300)


@pytest.mark.parametrize(
    ("errors", "allowed"),
    [
        ((torch.nan, 0.1, 0.3), True),
        ((0.3, 0.1, torch.nan), True),
        ((torch.nan, torch.nan, torch.nan), True),
        ((0.0, 0.0, 0.0), True),
        ((0.9, 0.1, 0.3), False),
    ],
    ids=["error NaN", "mean pose NaN", "no samples", "all poses alike", "not allowed"],
)
@pytest.mark.parametrize("before", [0.5, 1.5])
def test_what_was_not_observed_changes_nothing(
    errors: tuple[float, float, float], allowed: bool, before: float
) -> None:
    controller = new_controller()
    move(controller, before, 250)
    state = copy.deepcopy(controller.state_dict())
    controller.move(torch.tensor(errors), torch.tensor(allowed))
    assert differences(dict(state), dict(controller.state_dict())) == []


def test_strength_is_the_policys_own() -> None:
    policy = AugmentationPolicy("h36m_16")
    controller = FeedbackController(policy.strength)
    move(controller, 2.0, 40)
    assert 0 < controller.strength < 1
    assert policy.strength.data_ptr() == controller.strength.data_ptr()
    other = AugmentationPolicy("h36m_16")
    FeedbackController(other.strength).load_state_dict(controller.state_dict())
    assert other.strength == controller.strength


# -- what the strength does ------------------------------------------------------------------------


def drawn(policy: AugmentationPolicy, frames: int = 1) -> Any:
    joints = absolute_batch(64, frames=frames).inputs_3d
    noise = torch.randn(64, policy.noise_size, generator=torch.Generator().manual_seed(0))
    parameters = policy(joints, noise)
    return joints, parameters, apply_augmentation(joints, parameters, H36M_16).moved


@pytest.mark.parametrize("frames", [1, 3])
def test_strength_zero_gives_back_the_originals(frames: int) -> None:
    policy = AugmentationPolicy("h36m_16", spread=Spread(keep_view=0, focal_length=0.3))
    policy.strength.fill_(0.0)
    joints, parameters, moved = drawn(policy, frames)
    torch.testing.assert_close(moved, joints, rtol=0, atol=1e-5)
    assert (parameters.focal_ratio == 1).all()
    policy.strength.fill_(1.0)
    assert (drawn(policy, frames)[2] - joints).abs().max() > 0.5


@pytest.mark.parametrize("spread", [Spread(), Spread(focal_length=0.3, keep_view=0.1)])
def test_strength_one_gives_bit_for_bit_the_draws_without_it(spread: Spread) -> None:
    policy = AugmentationPolicy("h36m_16", spread=spread)
    nn.init.normal_(policy.widening, std=0.01)
    joints, parameters, _ = drawn(policy)
    noise = torch.randn(64, policy.noise_size, generator=torch.Generator().manual_seed(0))
    factors = (policy.factor_of_draw @ policy.log_spread_factors()).exp()
    base = policy.draw(joints, noise, policy.widths * factors)
    assert differences(list(base), list(parameters)) == []
    plain = RandomPolicy("h36m_16", spread=spread)
    with torch.no_grad():
        policy.widening.zero_()
        assert differences(list(plain(joints, noise)), list(policy(joints, noise))) == []
        full = plain.draw(joints, noise, plain.widths, torch.ones(()))
        assert differences(list(plain(joints, noise)), list(full)) == []


def test_half_the_strength_is_half_of_every_spread() -> None:
    policy = AugmentationPolicy("h36m_16", spread=Spread(keep_view=0))
    joints, full, _ = drawn(policy)
    policy.strength.fill_(0.5)
    _, half, _ = drawn(policy)
    assert torch.allclose(half.bone_length_ratio, 0.5 * full.bone_length_ratio)
    place = joints[:, :1, 0]
    middle = 0.5 * (place + full.translation)
    assert torch.allclose(half.translation, middle, atol=1e-5)
    assert (half.bone_direction_offset.norm(dim=-1) < full.bone_direction_offset.norm(dim=-1)).all()


def test_a_hook_with_strength_one_augments_as_one_without_feedback() -> None:
    made = []
    for feedback in (True, False):
        estimator = make_lifter(dropout=0.0)
        hook, optimizer = make_hook(estimator, feedback=feedback), adam(estimator)
        outputs = []
        for batch in stream(4):
            outputs.append(augmented(hook, batch))
            train(hook, estimator, optimizer, [batch])
        made.append(outputs)
        assert hook.policy.strength == 1
    assert differences(*made) == []


def test_a_hook_with_strength_zero_gives_back_the_originals() -> None:
    hook, batch = make_hook(make_lifter(), share=1.0), make_batch(32)
    hook.policy.strength.fill_(0.0)
    outputs = augmented(hook, batch)
    torch.testing.assert_close(outputs.inputs_2d, batch.inputs_2d, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.inputs_3d, batch.inputs_3d, rtol=0, atol=1e-5)


# -- in a training ---------------------------------------------------------------------------------


Answer = Callable[[HostPoses], Tensor]


def truth(outputs: HostPoses) -> Tensor:
    return root_relative(without_trajectory(outputs.inputs_3d), H36M_16)


def far_off(outputs: HostPoses) -> Tensor:
    return truth(outputs) + torch.linspace(-2, 2, 16)[:, None]


def observing_hook(**options: Any) -> PoseAugHook:
    """A hook without critics, for long trainings; the answers are all to augmented poses."""
    return make_hook(make_lifter(), critic_weight=0, **{"share": 1.0, **options})


def observe(hook: PoseAugHook, answer: Answer, times: int, batch: Any = None) -> list[float]:
    """Updates with the same answer over and over, and the strengths after them."""
    strengths = []
    for _ in range(times):
        hook.observe(answer(augmented(hook, batch or make_batch(8))))
        hook.step()
        strengths.append(hook.policy.strength.item())
    return strengths


def controller_state(hook: PoseAugHook) -> dict[str, Tensor]:
    modules = hook.state_dict()["training"]["modules"]
    return {k: v.clone() for k, v in modules.items() if k.startswith("controller.")}


def test_strength_of_a_hook_stays_falls_and_returns() -> None:
    hook = observing_hook()
    assert set(observe(hook, truth, 20)) == {1.0}
    falling = observe(hook, far_off, 40)
    assert falling[0] == 1
    assert 0 < falling[-1] < 0.8
    assert all(later <= earlier for earlier, later in pairwise(falling))
    assert 0 < hook.diagnostics().strength < 1
    assert hook.diagnostics().mean_pose_ratio > 1
    returning = observe(hook, truth, 100)
    assert returning[-1] == 1


def test_the_mean_pose_itself_is_no_better_than_the_mean_pose() -> None:
    def mean_pose(outputs: HostPoses) -> Tensor:
        return truth(outputs).mean(0, keepdim=True).expand_as(outputs.inputs_3d)

    hook = observing_hook(spread=Spread(keep_view=1))  # all are accepted
    observe(hook, mean_pose, 3)
    assert hook.diagnostics().mean_pose_ratio == pytest.approx(1.0, abs=1e-4)


def test_an_estimator_that_is_trained_leaves_the_strength_alone() -> None:
    estimator = make_lifter(dropout=0.0)
    hook = make_hook(estimator, critic_weight=0)
    train(hook, estimator, torch.optim.Adam(estimator.parameters(), lr=3e-3), stream(8, 64) * 20)
    assert hook.policy.strength == 1
    assert hook.diagnostics().mean_pose_ratio < 0.95


def test_an_estimator_that_has_hardly_begun_keeps_all_augmentation() -> None:
    """Its error is above the mean pose's on every pose, so augmentation is not to blame."""
    hook = observing_hook(share=0.5)
    assert set(observe(hook, far_off, 60)) == {1.0}
    assert hook.diagnostics().mean_pose_ratio > 1


NOTHING_OBSERVED: dict[str, Answer] = {
    "NaN": lambda outputs: far_off(outputs) * torch.nan,
    "Inf": lambda outputs: far_off(outputs) * torch.inf,
    "another number of joints": lambda outputs: far_off(outputs)[:, :, :7],
    "another number of frames": lambda outputs: far_off(outputs).repeat(1, 5, 1, 1),
    "another batch": lambda outputs: far_off(outputs)[:5],
    "a single number": lambda outputs: far_off(outputs).mean(),
    "no accepted poses": far_off,
}


@pytest.mark.parametrize("kind", NOTHING_OBSERVED)
def test_nothing_observed_changes_nothing(kind: str) -> None:
    spread = OUT_OF_SIGHT if kind == "no accepted poses" else Spread()
    hook = observing_hook(spread=spread)
    observe(hook, far_off, 20 if kind != "no accepted poses" else 1)
    assert (hook.policy.strength < 1) == (kind != "no accepted poses")
    before, found = controller_state(hook), hook.diagnostics()
    observe(hook, NOTHING_OBSERVED[kind], 2)
    assert differences(before, controller_state(hook)) == []
    after = hook.diagnostics()
    assert after.updates == found.updates + 2
    ratios = found.mean_pose_ratio, after.mean_pose_ratio
    assert ratios[0] == ratios[1] or all(map(math.isnan, ratios))


def test_no_usable_sample_changes_nothing() -> None:
    hook = observing_hook()
    hook.policy.strength.fill_(0.5)
    batch = make_batch(8)
    batch = batch._replace(inputs_2d=batch.inputs_2d * torch.nan)
    before = controller_state(hook)
    with pytest.warns(match="first batch looks wrong: no sample"):
        observe(hook, far_off, 2, batch)
    assert differences(before, controller_state(hook)) == []


def test_unseen_predictions_change_nothing() -> None:
    hook = observing_hook()
    hook.policy.strength.fill_(0.5)
    before = controller_state(hook)
    for batch in stream(2):
        augmented(hook, batch)
        hook.step()
    assert differences(before, controller_state(hook)) == []


@pytest.mark.parametrize("overflows", [True, False])
def test_strength_does_not_move_in_a_step_that_the_device_skips(overflows: bool) -> None:
    estimator = make_lifter()
    optimizer = OPTIMIZERS["adam fused"](estimator.parameters())
    hook = make_hook(estimator, share=1.0)
    hook.policy.strength.fill_(0.5)
    before = controller_state(hook)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    optimizer.found_inf = torch.tensor(float(overflows))  # as GradScaler leaves it
    optimizer.step()
    assert hook.diagnostics().updates == 1
    assert (differences(before, controller_state(hook)) == []) == overflows


def test_without_feedback_the_strength_stays() -> None:
    hook = observing_hook(feedback=False)
    assert set(observe(hook, far_off, 40)) == {1.0}
    assert controller_state(hook) == {}


def test_controller_is_saved_and_goes_on_bit_for_bit() -> None:
    whole, first, second = (observing_hook(seed=seed) for seed in (0, 0, 1))
    observe(whole, far_off, 50)
    observe(first, far_off, 30)
    assert 0 < first.policy.strength < 1
    observe(second, truth, 3)
    second.load_state_dict(frozen_state(first))
    assert second.policy.strength == first.policy.strength
    observe(second, far_off, 20)
    assert second.policy.strength == whole.policy.strength
    assert differences(whole.state_dict(), second.state_dict()) == []


def test_loading_begins_with_the_saved_strength_for_the_next_batch() -> None:
    weak, hook, batch = observing_hook(), observing_hook(), make_batch()
    weak.policy.strength.fill_(0.0)
    hook.load_state_dict(weak.state_dict())
    outputs = augmented(hook, batch)
    torch.testing.assert_close(outputs.inputs_2d, batch.inputs_2d, rtol=0, atol=1e-5)


# -- observed errors -------------------------------------------------------------------------------


def slow_errors(hook: PoseAugHook, predicted: Tensor, most: int = 128) -> tuple[float, ...]:
    """`observed_errors` in loops over samples: augmented, original, mean pose, count."""
    batch = hook._pending.batch
    frames = predicted.shape[1]

    def shown(poses: Tensor) -> Tensor:  # what the estimator lifts of a window
        return poses[batch.target, None] if frames == 1 and len(poses) > 1 else poses

    def error(row: int, target: Tensor) -> float:
        off = [
            ((p - p[0]) - (t - t[0])).norm(dim=-1).mean()
            for p, t in zip(predicted[row], target, strict=True)
        ]
        return torch.stack(off).mean().item()

    def some(count: int) -> list[int]:
        return [i * count // most for i in range(most)] if count > most else list(range(count))

    errors, poses = [], []
    for i in some(len(batch.places)):
        target = shown(batch.joints[i])
        found = error(int(batch.places[i]), target)
        if batch.accepted[i] and math.isfinite(found):
            errors.append(found)
            poses.append(target[len(target) // 2] - target[len(target) // 2][0])
    easier = []
    for i in some(len(batch.originals)):
        row = int(batch.originals[i])
        found = error(row, shown(batch.batch.joints[row]))
        if batch.batch.usable[row] and math.isfinite(found):
            easier.append(found)
    mean = torch.stack(poses).mean(0)
    from_mean = [(pose - mean).norm(dim=-1).mean().item() for pose in poses]

    def average(values: list[float]) -> float:
        return sum(values) / len(values)

    return average(errors), average(easier), average(from_mean), float(len(errors))


@pytest.mark.filterwarnings("ignore:PoseAugHook. the first batch looks wrong")
@pytest.mark.parametrize("size", [24, 700])
@pytest.mark.parametrize(("frames", "lifted"), [(1, 1), (5, 5), (5, 1)])
@pytest.mark.parametrize("mix", ["replace", "append"])
def test_observed_errors_are_those_of_a_slow_loop(
    mix: str, frames: int, lifted: int, size: int
) -> None:
    batch = make_batch(size, frames=frames)
    batch.inputs_3d[::7] = torch.nan  # unusable
    hook = make_hook(make_lifter(), mix=mix, spread=Spread(depth=(0.3, 1.2)))
    outputs = augmented(hook, batch)
    accepted = hook._pending.batch.accepted
    assert 0 < accepted.sum() < len(accepted)
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(len(outputs.inputs_3d), lifted, 16, 3, generator=generator)
    predicted[1::5] = torch.nan
    predicted[2::5, :, 3, 1] = torch.inf
    observed = observed_errors(predicted, hook._pending.batch, H36M_16)
    expected = slow_errors(hook, predicted)
    assert expected[3] > 5
    assert tuple(x.item() for x in observed) == pytest.approx(expected, rel=1e-4)


def test_observed_errors_without_samples_are_nan() -> None:
    hook = observing_hook(spread=OUT_OF_SIGHT)
    outputs = augmented(hook, make_batch())
    observed = observed_errors(outputs.inputs_3d, hook._pending.batch, H36M_16)
    assert observed.augmented.isnan()
    assert observed.original.isnan()
    assert observed.mean_pose.isnan()
    assert observed.weight == 0


def test_observed_errors_do_not_see_where_the_root_is_put() -> None:
    hook = make_hook(make_lifter())
    outputs = augmented(hook, make_batch())
    predicted = torch.randn(16, 1, 16, 3, generator=torch.Generator().manual_seed(0))
    first, second = (
        observed_errors(p, hook._pending.batch, H36M_16) for p in (predicted, predicted + 3.0)
    )
    assert outputs.inputs_3d.shape == predicted.shape
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)
