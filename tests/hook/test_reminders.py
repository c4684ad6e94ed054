"""A training that goes on, but not as it is meant, is warned of once, with what to do."""

from __future__ import annotations

import pytest
import torch
from loops import Batch, augmented, make_batch, make_hook, make_lifter

from poseaug_plugin import PoseAugWarning


def test_hundred_batches_without_a_step_are_warned_of() -> None:
    hook = make_hook(make_lifter(), preset="random")
    batch = make_batch(4)
    for _ in range(99):
        augmented(hook, batch)
    with pytest.warns(PoseAugWarning, match=r"100 batches were augmented.*call hook\.step\(\)"):
        augmented(hook, batch)
    for _ in range(101):
        augmented(hook, batch)


def test_hundred_batches_without_a_step_of_the_named_optimizer_are_warned_of() -> None:
    estimator, batch = make_lifter(), make_batch(4)
    hook = make_hook(estimator, torch.optim.SGD(estimator.parameters(), 0.1), preset="random")
    another = torch.optim.SGD(estimator.parameters(), 0.1)
    for _ in range(99):
        augmented(hook, batch)
        another.step()
    with pytest.warns(PoseAugWarning, match=r"the hook was given has not stepped.*Leave the arg"):
        augmented(hook, batch)


def test_batches_with_steps_are_not_warned_of() -> None:
    hook = make_hook(make_lifter(), preset="random")
    batch = make_batch(4)
    for _ in range(60):
        augmented(hook, batch)
    hook._estimator(batch.inputs_2d)
    hook.step()
    for _ in range(60):
        augmented(hook, batch)


def test_batches_that_are_always_too_small_are_told() -> None:
    hook = make_hook(make_lifter(), share=0.5)
    batch = Batch(*(x[:2] for x in make_batch()))
    for _ in range(99):
        augmented(hook, batch)
    augmented(hook, make_batch())  # a larger one in between: it does learn
    for _ in range(99):
        augmented(hook, batch)
    with pytest.warns(PoseAugWarning, match=r"100 batches in a row .* share=0\.5 of 2 samples"):
        augmented(hook, batch)


def test_augmenting_in_an_evaluation_is_told_once() -> None:
    estimator, batch = make_lifter().eval(), make_batch()
    hook = make_hook(estimator)
    augmented(hook, batch)  # in eval mode, as for a frozen BatchNorm
    with torch.no_grad():
        with pytest.warns(PoseAugWarning, match=r"eval mode and gradients are off.*paused"):
            augmented(hook, batch)
        augmented(hook, batch)
        estimator.train()
        augmented(hook, batch)
        with hook.paused():
            estimator.eval()
            augmented(hook, batch)


def test_warnings_point_at_the_users_own_line() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    batch = make_batch()
    with pytest.warns(PoseAugWarning, match="took skeleton") as caught:
        hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert [warning.filename for warning in caught] == [__file__]
