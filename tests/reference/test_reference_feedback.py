"""Feedback and penalties of paper and released code, against loops, and who is asked for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import agree, bent_joints, generated, gradient, human_poses, leaf
from loops import (
    HOOKS,
    PUBLISHED,
    adam,
    augmented,
    differences,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    stream,
    train,
)
from random_bodies import generator, normal
from torch import Tensor, nn

from poseaug_plugin import PoseAugError
from poseaug_plugin.adversary.critics import PartKCSCritic, adversarial_term
from poseaug_plugin.body.bones import bone_directions, joints_to_bones
from poseaug_plugin.body.camera import project_points
from poseaug_plugin.body.presets import H36M_16, SKELETONS
from poseaug_plugin.body.skeleton import Skeleton
from poseaug_plugin.reference.recipes import (
    EstimatorFeedback,
    FeedbackCase,
    Paper,
    Ramp,
    Released,
    both_sided_term,
    dead_zone,
    error_groups,
    estimator_errors,
    joint_weights,
    paper_feedback,
    project_clamped,
    released_feedback,
    released_frame_check,
    released_range_term,
)

WEIGHTS = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
each_preset = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)


def poses(frames: int = 1, skeleton: Skeleton = H36M_16) -> Tensor:
    return human_poses(6, frames, skeleton, generator(0))


# -- errors ----------------------------------------------------------------------------------------


@each_preset
@pytest.mark.parametrize("frames", [1, 3])
def test_errors_are_what_a_loop_finds(skeleton: Skeleton, frames: int) -> None:
    target, predicted = poses(frames, skeleton), normal(6, frames, skeleton.num_joints, 3)
    squared = estimator_errors(predicted, target, "squared_norm", skeleton)
    grouped = estimator_errors(predicted, target, "grouped", skeleton)
    weights, groups = joint_weights(skeleton), error_groups(skeleton)
    assert squared.shape == (6, 1)
    assert grouped.shape == (6, len(groups))
    for i in range(6):
        distance = (predicted[i] - target[i]).square().sum(-1).sqrt().mean(0)
        norms = (predicted[i] - target[i]).square().sum((1, 2))
        assert squared[i].item() == pytest.approx(norms.mean().item())
        expected = [sum(weights[j] * float(distance[j]) for j in g) / len(g) for g in groups]
        assert grouped[i].tolist() == pytest.approx(expected)


# -- single forms ----------------------------------------------------------------------------------


def test_a_ramp_is_a_straight_line() -> None:
    assert [Ramp(3.0, 5.0).at(x) for x in (0.0, 0.25, 1.0)] == [3.0, 3.5, 5.0]
    assert Ramp(17.0, 17.0).at(0.3) == 17.0


def test_papers_feedback_is_zero_at_its_target_and_does_not_overflow() -> None:
    easier = torch.tensor([0.1, 0.2])
    assert paper_feedback(3.0 * easier, easier, 3.0).abs().max() < 1e-6
    assert paper_feedback(easier, easier, 3.0).tolist() == pytest.approx(
        [1 - math.exp(-0.2), 1 - math.exp(-0.4)], rel=1e-5
    )
    harder = leaf(torch.tensor([1.0, 1e4, math.inf]))
    loss = paper_feedback(harder, torch.tensor(0.1), 3.0)
    assert loss.isfinite().all()
    assert gradient(loss.sum(), harder).isfinite().all()
    assert loss[1:].tolist() == pytest.approx([math.exp(20.0)] * 2, rel=1e-5)


def test_released_feedback_is_free_inside_its_tolerance() -> None:
    easier = torch.full((5,), 0.1).double()
    harder = leaf(0.1 * torch.tensor([0.9, 1.1, 3.0, 4.9, 5.1]).double())
    loss = released_feedback(harder, easier, 3.0, 2.0)
    assert loss.tolist() == pytest.approx([2.1**2, 0, 0, 0, 2.1**2])
    slopes = gradient(loss.sum(), harder)
    assert slopes.sign().tolist() == [-1, 0, 0, 0, 1]


def test_released_feedback_divides_by_no_zero() -> None:
    loss = released_feedback(torch.tensor([0.0, 1.0]), torch.zeros(2), 3.0, 0.5)
    assert loss.isfinite().all()


def test_dead_zones_end_on_both_sides() -> None:
    values = torch.tensor([-1.5, -1.0, -0.5, 0.5, 1.0]).double()
    assert dead_zone(values, -0.5, 0.5).tolist() == [1.0, 0.0, 0.0, 1.0, 2.25]


def test_clamped_rays_are_ordinary_ones_inside() -> None:
    points = torch.randn(6, 16, 3, generator=generator(0)).double().abs() * 0.3
    points[..., 2] += 1.5
    intrinsics = normal(6, 9).abs() * 0.1
    agree(project_clamped(points, intrinsics), project_points(points, intrinsics))


def test_released_frame_check_is_open_on_two_sides() -> None:
    points = torch.tensor([[0.0, 0, 5], [0, 0, 5], [0, 0, 5], [0, 0, 0.05], [0, 0, -1]])
    keypoints = torch.tensor([[-9.0, -9.0], [1.01, 0.0], [0.0, 1.01], [0.0, 0.0], [0.0, 0.0]])
    seen = released_frame_check(points[None], keypoints[None], torch.zeros(1, 9))
    assert seen.tolist() == [[True, False, False, False, False]]


def test_released_range_term_is_what_a_loop_finds() -> None:
    groups = torch.tensor(H36M_16.bone_length_groups)
    for scale in (0.05, 0.5, 2.0):
        clean = poses()
        changed = bent_joints(clean, scale * normal(6, 1, 15, 3), H36M_16)
        tied = (0.3 * scale * normal(6, 9)).tanh()
        ratios = tied[:, groups]
        expected = 0.0
        for i, weight in enumerate(WEIGHTS.tolist()):
            before, after = (
                bone_directions(joints_to_bones(x[i, 0], H36M_16)) for x in (clean, changed)
            )
            angle = float((1 - (before * after).sum(-1)).mean())
            loss = (angle - 0.205) ** 2 if abs(angle - 0.205) > 0.165 else 0.0
            loss += sum(r**2 for r in tied[i].tolist() if abs(r) > 0.1) / 9
            expected += 3 * weight * loss / 4
        made = generated(clean[:, 0], changed[:, 0], ratio=ratios, weights=WEIGHTS)
        assert released_range_term(made).item() == pytest.approx(expected)


def test_real_half_of_the_both_sided_term_is_a_constant() -> None:
    critic = PartKCSCritic(H36M_16, width=8).double()
    critic.weight = 6.0
    clean, fake = leaf(poses()[:, 0]), leaf(normal(6, 16, 3))
    made = generated(clean, fake, weights=WEIGHTS)
    both, one = both_sided_term(made, critic), adversarial_term(made, critic)
    real = critic(clean).square().mean(1)
    agree((both - one).detach(), (3 * (real * WEIGHTS).sum() / 4).detach())
    for wrt in (fake, *critic.parameters()):
        agree(gradient(both, wrt), gradient(one, wrt))
    assert not gradient(both + 0 * clean.sum(), clean).any()


# -- the term --------------------------------------------------------------------------------------


class Asked:
    """Answers with the mean of the poses' depths, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        self.asked.append((keypoints, joints))
        return joints[..., 2].mean((1, 2))[:, None] + keypoints.square().mean((1, 2, 3))[:, None]


def term_of(*cases: FeedbackCase, warmup: float = 0.0) -> tuple[EstimatorFeedback, Asked]:
    asked = Asked()

    def loss(harder: Tensor, easier: Tensor, ratio: float, tolerance: float) -> Tensor:
        return (harder - ratio * easier) ** 2 + tolerance

    nobody: Any = None
    term = EstimatorFeedback(nobody, cases, loss, "squared_norm", "frozen", warmup)
    term.ask = asked  # type: ignore[method-assign]
    return term, asked


BENT: FeedbackCase = (0.1, Ramp(3.0, 5.0), 2.0, "bent")
MOVED: FeedbackCase = (0.01, Ramp(17.0, 17.0), 15.0, "moved")


def made_batch() -> Any:
    clean = poses()[:, 0]
    made = generated(clean, leaf(clean + 0.1 * normal(6, 16, 3)), weights=WEIGHTS)
    moved = made.poses.moved + torch.tensor([0.0, 0.0, 1.0])
    keypoints = project_points(moved, made.intrinsics)
    return replace(made, poses=made.poses._replace(moved=moved), keypoints=keypoints)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_feedback_is_the_weighted_sum_of_its_cases(progress: float) -> None:
    term, asked = term_of(BENT, MOVED)
    term.progress = progress
    made = made_batch()
    total = term(made)
    clean, _, intrinsics, _ = made.inputs.poses
    bent_2d = project_clamped(made.poses.bent, intrinsics)
    expected_asks = [
        (project_clamped(clean, intrinsics), clean),
        (bent_2d, made.poses.bent),
        (made.keypoints, made.poses.moved),
    ]
    assert len(asked.asked) == 3
    for got, wanted in zip(asked.asked, expected_asks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    easier, bent, moved = (Asked()(*ask) for ask in expected_asks)
    each = 0.1 * ((bent - (3 + 2 * progress) * easier) ** 2 + 2.0)
    each = each + 0.01 * ((moved - 17 * easier) ** 2 + 15.0)
    agree(total.detach(), ((each[:, 0] * WEIGHTS).sum() / 4).detach())
    assert total.requires_grad


def test_original_poses_learn_nothing_from_feedback() -> None:
    term, _ = term_of(MOVED)
    clean = leaf(poses()[:, 0])
    made = generated(clean, poses()[:, 0] + 0.1 * normal(6, 16, 3), weights=WEIGHTS)
    assert not term(made).requires_grad


@pytest.mark.parametrize(
    ("progress", "warmup", "asks"),
    [(0.0, 0.04, 0), (0.04, 0.04, 0), (0.041, 0.04, 2), (0.0, 0.0, 2), (1.0, 1.0, 0)],
)
def test_feedback_waits_for_the_warmup(progress: float, warmup: float, asks: int) -> None:
    term, asked = term_of(BENT, warmup=warmup)
    term.progress = progress
    total = term(made_batch())
    assert len(asked.asked) == asks
    assert bool(total) == bool(asks)


def test_nobody_is_asked_without_a_case() -> None:
    term, asked = term_of()
    assert term(made_batch()) == 0
    assert asked.asked == []


# -- who is asked ----------------------------------------------------------------------------------


class Counted(nn.Module):
    """A lifter that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.lifter = make_lifter()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.lifter(x)


def calls_of_one_update(options: dict[str, Any], after: int = 0) -> int:
    estimator = Counted()
    hook = make_hook(estimator, **options)
    optimizer = adam(estimator)
    train(hook, estimator, optimizer, stream(after))
    augmented(hook, make_batch())
    before = estimator.calls
    hook.step()
    return estimator.calls - before


@pytest.mark.parametrize(
    ("preset", "calls"),
    [
        (Released(**PUBLISHED), 3),  # on clean, bent and moved poses
        (Paper(**PUBLISHED), 2),
        (Released(**PUBLISHED, bent_weight=0.0), 2),
        (Released(**PUBLISHED, bent_weight=0.0, moved_weight=0.0), 0),
        (Released(**{**PUBLISHED, "warmup": 0.5}), 0),
    ],
    ids=repr,
)
def test_the_estimator_is_asked_as_often_as_it_is_needed(
    preset: Released | Paper, calls: int
) -> None:
    assert calls_of_one_update({"preset": preset, "total_updates": 20}) == calls


def test_the_estimator_is_asked_once_the_warmup_is_over() -> None:
    preset = Released(**{**PUBLISHED, "warmup": 0.2})
    asked = [
        calls_of_one_update({"preset": preset, "total_updates": 20}, after) for after in (4, 5)
    ]
    assert asked == [0, 3]


@pytest.mark.parametrize("name", ["default", "random", "without critics"])
def test_only_the_published_presets_ask(name: str) -> None:
    assert calls_of_one_update(HOOKS[name]) == 0


@pytest.mark.parametrize("name", ["released", "paper"])
def test_asking_leaves_nothing_in_the_estimator(name: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, **HOOKS[name])
    augmented(hook, make_batch())
    before = leavings(estimator)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in before.items()}
    hook.step()
    assert differences(before, leavings(estimator)) == []
    assert hook.losses["policy/feedback"] > 0


def test_estimators_that_return_no_tensor_are_told() -> None:
    class Talking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> str:
            return "a pose"

    hook = make_hook(Talking(), **HOOKS["released"])
    augmented(hook, make_batch())
    with pytest.raises(
        RuntimeError, match="asked by the hook, so it must return a tensor"
    ) as failure:
        hook.step()
    assert isinstance(failure.value.__cause__, PoseAugError)
