"""A published preset asks the estimator in isolation: no trace in it, exact gradients from it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import PUBLISHED, differences, leavings, make_batch, make_lifter
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, Spread, apply_augmentation, project_points
from poseaug_plugin.augment.transforms import AugmentationInputs, GeneratedPoses
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.poses import CanonicalBatch
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.reference.recipes import (
    EstimatorFeedback,
    FeedbackCase,
    Ramp,
    estimator_errors,
    paper_feedback,
)
from poseaug_plugin.runtime.isolation import isolated_call, unwrap_module

each_mode = pytest.mark.parametrize("mode", ["frozen", "as_found"])


def own_stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@each_mode
def test_isolated_call_leaves_no_trace(mode: str) -> None:
    estimator = make_lifter(frozen=True)
    estimator(make_batch().inputs_2d).sum().backward()
    before = copy.deepcopy(leavings(estimator))
    inputs = make_batch().inputs_2d.requires_grad_()
    isolated_call(estimator, inputs, own_stream(), mode).sum().backward()
    assert differences(before, leavings(estimator)) == []


class Failing(nn.Module):
    """An estimator that cannot be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.lifter = make_lifter()

    def forward(self, inputs_2d: Tensor) -> Tensor:
        self.lifter(inputs_2d)
        raise KeyError("not like this")


@each_mode
def test_failing_isolated_call_leaves_no_trace(mode: str) -> None:
    estimator = Failing()
    before = copy.deepcopy(leavings(estimator))
    inputs = make_batch().inputs_2d.requires_grad_()
    with pytest.raises(KeyError):
        isolated_call(estimator, inputs, own_stream(), mode)
    assert differences(before, leavings(estimator)) == []


class Shares(nn.Module):
    """An estimator in which one layer has two names, and two layers share a weight and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Linear(32, 32)
        self.blocks = nn.ModuleList([block, block])
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.norm, self.other_norm = nn.BatchNorm1d(32), nn.BatchNorm1d(32)
        self.other_norm.running_mean = self.norm.running_mean
        self.last = nn.Linear(32, 48)

    def forward(self, inputs_2d: Tensor) -> Tensor:
        features = inputs_2d.flatten(1)
        for layer in (*self.blocks, self.first, self.norm, self.second, self.other_norm):
            features = layer(features)
        return self.last(features).view(-1, 1, 16, 3)


def places(module: nn.Module) -> list[tuple[str, str, int]]:
    """Which object every place of every layer holds."""
    return [
        (name, key, id(value))
        for name, part in module.named_modules(remove_duplicate=False)
        for key, value in (*part._parameters.items(), *part._buffers.items())
    ]


@each_mode
def test_isolated_call_leaves_shared_layers_and_tensors_alone(mode: str) -> None:
    estimator = Shares()
    before, held = copy.deepcopy(leavings(estimator)), places(estimator)
    inputs = make_batch().inputs_2d.requires_grad_()
    predicted = isolated_call(estimator, inputs, own_stream(), mode)
    predicted.sum().backward()
    assert places(estimator) == held
    assert differences(before, leavings(estimator)) == []
    if mode == "as_found":
        assert torch.equal(predicted, estimator(inputs))


@each_mode
def test_isolated_call_of_a_module_that_writes_into_its_input(mode: str) -> None:
    class Relative(nn.Module):
        def forward(self, inputs_2d: Tensor) -> Tensor:
            inputs_2d -= inputs_2d[..., :1, :].clone()
            return inputs_2d

    inputs = make_batch().inputs_2d.requires_grad_()
    before = inputs.detach().clone()
    predicted = isolated_call(Relative(), inputs, own_stream(), mode)
    predicted.square().sum().backward()
    assert torch.equal(inputs, before)
    assert torch.equal(predicted, before - before[..., :1, :])
    assert inputs.grad is not None


def test_frozen_isolated_call_is_the_estimator_at_test_time() -> None:
    estimator = make_lifter()
    inputs = make_batch().inputs_2d
    predicted = isolated_call(estimator, inputs, own_stream(), "frozen")
    assert torch.equal(predicted, estimator.eval()(inputs))


def test_isolated_call_as_found_is_the_estimator_as_it_trains() -> None:
    estimator = make_lifter(dropout=0.0)
    inputs = make_batch().inputs_2d
    predicted = isolated_call(estimator, inputs, own_stream(), "as_found")
    assert torch.equal(predicted, estimator(inputs))


def test_dropout_of_an_isolated_call_comes_from_the_hooks_stream() -> None:
    estimator = make_lifter(dropout=0.5)
    inputs = make_batch().inputs_2d
    first, again, other = (
        isolated_call(estimator, inputs, own_stream(seed), "as_found") for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@each_mode
def test_isolated_call_keeps_its_inputs_precision_under_autocast(mode: str) -> None:
    estimator = make_lifter(dropout=0.0)
    inputs = make_batch().inputs_2d
    plain = isolated_call(estimator, inputs, own_stream(), mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(isolated_call(estimator, inputs, own_stream(), mode), plain)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda module: torch.compile(module, backend="eager"),
        lambda module: nn.DataParallel(torch.compile(module, backend="eager")),
    ],
    ids=["data parallel", "compiled", "both"],
)
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    estimator = make_lifter()
    assert unwrap_module(wrap(estimator)) is estimator


@each_mode
def test_feedback_gradient_is_that_of_finite_differences(mode: str) -> None:
    torch.manual_seed(0)
    policy = AugmentationPolicy(H36M_16, spread=Spread(pitch=0.2, bone_angle=0.05)).double()
    nn.init.normal_(policy.widening, std=0.01)
    estimator = make_lifter().double()
    joints = human_poses(6, 1, H36M_16, own_stream())
    camera = h36m_intrinsics(6)
    noise = torch.randn(6, policy.noise_size, generator=own_stream(), dtype=torch.float64)
    usable = torch.ones(6, dtype=torch.bool)
    inputs = AugmentationInputs(
        CanonicalBatch(joints, project_points(joints, camera), camera, usable), noise, None, True
    )
    whole = Ramp(1.0, 1.0)
    cases: tuple[FeedbackCase, ...] = ((0.5, whole, 0.0, "bent"), (1.0, whole, 0.0, "moved"))

    def loss() -> Tensor:
        generator = own_stream(1)  # the same dropout every time

        def error_of(keypoints: Tensor, poses: Tensor) -> Tensor:
            predicted = isolated_call(estimator, keypoints, generator, mode)
            target = root_relative(poses, H36M_16)
            return estimator_errors(predicted, target, "squared_norm", H36M_16)

        feedback = EstimatorFeedback(
            None,  # type: ignore[arg-type]  # nobody's: `error_of` answers
            cases,
            paper_feedback,
            "squared_norm",
            "frozen",
            warmup=PUBLISHED["warmup"],
        )
        feedback.ask = error_of  # type: ignore[method-assign]
        parameters = policy(joints, noise)
        poses = apply_augmentation(joints, parameters, H36M_16)
        keypoints = project_points(poses.moved, camera)
        return feedback(GeneratedPoses(inputs, parameters, poses, keypoints, camera, H36M_16))

    gradients = torch.autograd.grad(loss(), list(policy.parameters()))
    step = 1e-6
    for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=own_stream(2), dtype=torch.float64)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                sides.append(loss())
                parameter -= sign * step * direction
        expected = (sides[0] - sides[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(expected.item(), rel=1e-4)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
