"""A failure inside the hook leaves the estimator's weights as they were and says what to do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loops import (
    PUBLISHED,
    SmallDefault,
    adam,
    augmented,
    differences,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
)
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, PoseAugHook, PoseAugWarning
from poseaug_plugin.augment.transforms import AugmentationParameters
from poseaug_plugin.reference.recipes import Paper


class Touchy(nn.Module):
    """An estimator that works in the host's own passes only."""

    def __init__(self) -> None:
        super().__init__()
        self.lifter = make_lifter()
        self.touchy = True

    def forward(self, inputs_2d: Tensor) -> Tensor:
        if self.touchy and inputs_2d.requires_grad:
            raise KeyError("not like this")
        return self.lifter(inputs_2d)


class TouchyPolicy(AugmentationPolicy):
    """A policy that cannot be differentiated when it is touchy."""

    touchy = False

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        if self.touchy and torch.is_grad_enabled():
            raise KeyError("not like this")
        return super().forward(joints, noise)


class FailingStep:
    """Everything right before an ``optimizer.step()`` that will fail, and how it stood."""

    estimator: nn.Module
    hook: PoseAugHook

    def __init__(self, where: str) -> None:
        if where == "estimator":
            self.estimator = self.touchy = Touchy()
            preset = Paper(**PUBLISHED)
            self.hook = make_hook(self.estimator, preset=preset, total_updates=20)
        else:
            self.estimator, self.touchy = make_lifter(), TouchyPolicy("h36m_16")
            self.hook = make_hook(self.estimator, policy=self.touchy)
        self.optimizer = adam(self.estimator)
        self.touchy.touchy = False
        train(self.hook, self.estimator, self.optimizer, stream(1))
        self.touchy.touchy = True
        inputs_2d, inputs_3d = augmented(self.hook, make_batch(seed=5))
        self.optimizer.zero_grad()
        mpjpe(self.estimator(inputs_2d), inputs_3d).backward()
        self.before = copy.deepcopy(self.leavings())

    def leavings(self) -> dict[str, Any]:
        return leavings(self.estimator, self.optimizer)


@pytest.fixture(params=["estimator", "policy"])
def failing(request: pytest.FixtureRequest) -> FailingStep:
    return FailingStep(request.param)


def test_failure_leaves_the_host_as_it_was(failing: FailingStep) -> None:
    with pytest.raises(RuntimeError):
        failing.optimizer.step()
    assert differences(failing.before, failing.leavings()) == []


def test_failure_says_what_happened_and_what_to_do(failing: FailingStep) -> None:
    with pytest.raises(RuntimeError) as raised:
        failing.optimizer.step()
    message = str(raised.value)
    assert message.startswith("PoseAugHook.step failed (KeyError")
    assert "not like this" in message
    assert "The estimator has not been changed" in message
    assert "hook.enabled = False" in message
    assert isinstance(raised.value.__cause__, KeyError)


def test_after_a_failure_training_goes_on_with_the_hook_off(failing: FailingStep) -> None:
    with pytest.raises(RuntimeError):
        failing.optimizer.step()
    failing.hook.enabled = False
    failing.optimizer.step()
    changed = differences(failing.before, failing.leavings())
    assert any("weight" in name for name in changed)


def test_after_a_failure_the_hook_can_go_on(failing: FailingStep) -> None:
    with pytest.raises(RuntimeError):
        failing.optimizer.step()
    failing.touchy.touchy = False
    train(failing.hook, failing.estimator, failing.optimizer, stream(1))
    assert failing.hook.diagnostics().updates == 2


def test_failure_while_augmenting_leaves_nothing_to_learn() -> None:
    class Broken(AugmentationPolicy):
        def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
            raise KeyError("not at all")

    hook = make_hook(make_lifter(), policy=Broken("h36m_16"))
    with pytest.raises(KeyError, match="not at all"):
        augmented(hook, make_batch())
    hook.step()  # nothing waits
    assert hook.diagnostics().updates == 0


@pytest.mark.parametrize("network", ["policy", "critic_3d", "critic_2d"])
def test_weights_that_are_not_finite_are_told_and_augmentation_ends(network: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, preset=SmallDefault(critic_interval=1))
    optimizer = adam(estimator)
    train(hook, estimator, optimizer, stream(2))
    good = copy.deepcopy(hook.state_dict())
    phases = {phase.name: phase.network for phase in hook._trainer.phases}
    with torch.no_grad():
        next(phases[network].parameters()).fill_(torch.nan)
    with pytest.warns(
        PoseAugWarning, match=rf"weights of .*{network}.* goes on without augm"
    ) as said:
        train(hook, estimator, optimizer, stream(20))
    assert len(said) == 1
    batch = make_batch()
    assert augmented(hook, batch)[1] is batch.inputs_3d
    assert all(p.isfinite().all() for p in estimator.parameters())
    hook.load_state_dict(good)
    assert augmented(hook, batch)[1] is not batch.inputs_3d
    train(hook, estimator, optimizer, stream(12))
    assert hook.diagnostics().updates == 14


def test_gradients_that_are_not_finite_for_a_while_do_not_end_augmentation() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    hook._trainer.monitor.counts[1] = 1000
    train(hook, estimator, adam(estimator), stream(3))
    batch = make_batch()
    assert augmented(hook, batch)[1] is not batch.inputs_3d
