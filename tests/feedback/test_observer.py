"""The prediction is seen in the user's own pass, whatever wraps the estimator; only that counts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loops import (
    Batch,
    adam,
    augmented,
    changed,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    train,
)
from torch import Tensor, nn

from poseaug_plugin import PoseAugError, PoseAugHook, root_relative
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.feedback.observer import first_tensor


def saw_prediction(hook: PoseAugHook) -> bool:
    """Whether the last update compared a prediction with its poses."""
    return math.isfinite(hook.diagnostics().hardness_ratio)


def sees_prediction(estimator: nn.Module, batch: Batch | None = None, **options: Any) -> bool:
    hook = make_hook(estimator, **options)
    train(hook, estimator, adam(estimator), [batch or make_batch()])
    return saw_prediction(hook)


def test_estimator_is_observed() -> None:
    assert sees_prediction(make_lifter())


def test_compiled_estimator_is_observed() -> None:
    assert sees_prediction(torch.compile(make_lifter(), backend="eager"))


def test_data_parallel_estimator_is_observed() -> None:
    assert sees_prediction(nn.DataParallel(make_lifter()))


class Called(nn.Module):
    """An estimator that takes and gives its tensors in some other way."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.lifter = make_lifter()

    def forward(self, inputs_2d: Tensor) -> Any:
        return self.after(self.lifter(self.before(inputs_2d)))


@pytest.mark.parametrize(
    "after",
    [
        lambda joints: (joints, None),
        lambda joints: [joints],
        lambda joints: {"joints": joints, "other": 1},
        lambda joints: joints.flatten(1),
        lambda joints: joints[:, 0],
    ],
    ids=["tuple", "list", "dict", "flattened", "without frames"],
)
def test_prediction_is_found_in(after: Callable[[Tensor], Any]) -> None:
    estimator = Called(lambda x: x, after)
    hook = make_hook(estimator)
    estimator(augmented(hook, make_batch()).inputs_2d)
    hook.step()
    assert saw_prediction(hook)


@pytest.mark.parametrize("output", [None, (), [], {}, "joints", 3, (None, torch.zeros(2))])
def test_output_without_a_first_tensor_is_none(output: Any) -> None:
    assert first_tensor(output) is None


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (lambda x: x.permute(0, 3, 1, 2).contiguous(), lambda x: x.permute(0, 2, 3, 1)),
        (lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1)),
    ],
    ids=["copy", "view with the batch second"],
)
def test_permuted_input_is_recognised(
    given: Callable[[Tensor], Tensor], taken: Callable[[Tensor], Tensor]
) -> None:
    estimator = Called(taken, lambda joints: joints)
    hook = make_hook(estimator)
    estimator(given(augmented(hook, make_batch()).inputs_2d))
    hook.step()
    assert saw_prediction(hook)


class WithAdjacency(nn.Module):
    """A lifter that is given its graph as a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.lifter = make_lifter()

    def forward(self, adjacency: Tensor, keypoints: Tensor) -> Tensor:
        return self.lifter(keypoints) + 0 * adjacency.sum()


def test_arguments_without_memory_do_not_disturb() -> None:
    estimator = WithAdjacency()
    hook = make_hook(estimator)
    adjacency = torch.eye(16).to_sparse()
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(estimator(adjacency, inputs_2d), inputs_3d).backward()
    hook.step()
    assert hook.diagnostics().hardness_ratio > 0  # the prediction was seen


def test_keyword_arguments_are_seen() -> None:
    estimator = WithAdjacency()
    hook = make_hook(estimator)
    inputs_2d, _ = augmented(hook, make_batch())
    estimator(keypoints=inputs_2d, adjacency=torch.eye(16))
    hook.step()
    assert saw_prediction(hook)


def test_functional_transforms_of_the_estimator_work_while_a_batch_waits() -> None:
    estimator = make_lifter(batch_norm=False)
    hook = make_hook(estimator)
    inputs_2d, inputs_3d = augmented(hook, make_batch())

    def loss(keypoints: Tensor) -> Tensor:
        return mpjpe(estimator(keypoints), inputs_3d)

    assert torch.func.grad(loss)(inputs_2d).isfinite().all()
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    hook.step()
    assert hook.diagnostics().hardness_ratio > 0


# -- which pass counts -----------------------------------------------------------------------------


def test_evaluation_between_augment_and_step_is_not_taken_for_training() -> None:
    states = []
    for evaluates in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        estimator(augmented(hook, make_batch()).inputs_2d)
        if evaluates:
            with torch.no_grad():
                estimator(make_batch(seed=3).inputs_2d)
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize("given", [lambda x: x, lambda x: x.clone()], ids=["itself", "copy"])
def test_evaluation_of_the_augmented_batch_is_not_taken_for_training(given: Any) -> None:
    states = []
    for evaluates in (False, True):
        estimator = make_lifter()
        hook = make_hook(estimator)
        inputs_2d = augmented(hook, make_batch()).inputs_2d
        if evaluates:
            with torch.no_grad():
                estimator.eval()(given(inputs_2d))
        torch.manual_seed(0)
        estimator.train()(given(inputs_2d))
        if evaluates:
            with torch.no_grad():
                estimator.eval()(given(inputs_2d))
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_pass_with_the_augmented_batch_wins_over_one_that_only_looks_like_it() -> None:
    states = []
    for looks_alike in (False, True):
        estimator = make_lifter(dropout=0.0, batch_norm=False)
        hook = make_hook(estimator)
        estimator(augmented(hook, make_batch()).inputs_2d)
        if looks_alike:
            estimator(make_batch(seed=3).inputs_2d)
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_of_passes_that_only_look_like_it_the_last_counts() -> None:
    states = []
    for passes in ((3, 4), (4,)):
        estimator = make_lifter(dropout=0.0, batch_norm=False)
        hook = make_hook(estimator)
        augmented(hook, make_batch())
        for seed in passes:
            estimator(make_batch(seed=seed).inputs_2d)
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_passes_with_parts_of_the_batch_are_put_together(order: tuple[int, ...]) -> None:
    states = []
    for sees in (True, False):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        parts = augmented(hook, make_batch()).inputs_2d.split((4, 7, 5))
        if not sees:
            parts = tuple(part.clone() for part in parts)
        said = {part: estimator(parts[part]) for part in order}
        if not sees:
            hook.observe(torch.cat([said[part] for part in range(3)]))
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


def states_after(passes: list[Callable[[Tensor], Tensor]], frames: int = 1) -> dict[str, Any]:
    """What a hook has learned from these passes of one batch, each with dropout of its own."""
    estimator = make_lifter()
    hook = make_hook(estimator)
    inputs_2d, _ = augmented(hook, make_batch(frames=frames))
    for part in passes:
        torch.manual_seed(len(part(inputs_2d)))
        estimator(part(inputs_2d))
    hook.step()
    return frozen_state(hook)


FIRST, SECOND, WHOLE = lambda x: x[:9], lambda x: x[9:], lambda x: x


@pytest.mark.parametrize(
    ("passes", "same_as"),
    [
        ([FIRST, FIRST, SECOND], [FIRST, SECOND]),
        ([WHOLE, SECOND], [WHOLE]),
        ([FIRST, WHOLE, SECOND], [WHOLE]),
        ([FIRST, lambda x: x[2:15], SECOND], [FIRST, SECOND]),
    ],
    ids=["the same again", "after the whole", "before the whole", "overlapping"],
)
def test_passes_that_count(passes: list[Any], same_as: list[Any]) -> None:
    expected = states_after(same_as)
    assert differences(states_after(passes), expected) == []
    assert differences(states_after([]), expected) != []


def test_first_of_several_frames_that_are_lifted_alone_counts() -> None:
    first, second = lambda x: x[:, 1:2], lambda x: x[:, 2:3]
    once = states_after([first], frames=3)
    assert differences(states_after([first, second], frames=3), once) == []
    assert differences(states_after([second], frames=3), once) != []


@pytest.mark.parametrize(
    "parts",
    [
        [lambda x: x[:8]],
        [lambda x: x[:8], lambda x: x[4:12]],
        [lambda x: x[0::2], lambda x: x[1::2]],
    ],
    ids=["missing", "overlapping", "every other"],
)
def test_parts_that_do_not_make_up_the_batch_are_no_prediction(parts: list[Any]) -> None:
    assert differences(states_after(parts), states_after([])) == []


def test_output_without_dimensions_is_no_prediction() -> None:
    estimator = Called(lambda x: x, lambda joints: {"loss": joints.mean(), "joints": joints})
    hook = make_hook(estimator)
    estimator(augmented(hook, make_batch()).inputs_2d)
    hook.step()
    assert not saw_prediction(hook)


def test_unreadable_output_is_left_out() -> None:
    estimator = nn.Sequential(nn.Flatten(1), nn.Linear(32, 7))
    hook = make_hook(estimator)
    outputs = augmented(hook, make_batch())
    estimator(outputs.inputs_2d)
    hook.step()
    assert not saw_prediction(hook)
    assert hook.diagnostics().updates == 1


def test_passes_before_a_batch_is_augmented_and_after_its_step_do_not_count() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    batch = make_batch()
    estimator(batch.inputs_2d)
    outputs = augmented(hook, batch)
    hook.step()
    estimator(outputs.inputs_2d)
    augmented(hook, batch)
    hook.step()
    assert not saw_prediction(hook)
    assert hook.diagnostics().updates == 2


# -- told by hand ----------------------------------------------------------------------------------


def test_hidden_estimator_is_no_reason_to_warn() -> None:
    # Nothing but two figures and the strength reads the prediction; a warning would be an error.
    hook = make_hook(make_lifter())
    augmented(hook, make_batch())
    hook.step()
    found = hook.diagnostics()
    assert found.updates == 1
    assert math.isnan(found.hardness_ratio)
    assert math.isnan(found.mean_pose_ratio)
    assert found.strength == 1


def test_what_is_no_tensor_is_no_prediction() -> None:
    with pytest.raises(PoseAugError, match=r"observe: prediction must be a tensor, got ndarray"):
        make_hook(make_lifter()).observe(np.zeros((4, 1, 16, 3)))  # type: ignore[arg-type]


def test_observe_is_as_good_as_seeing() -> None:
    states = []
    for observes in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        outputs = augmented(hook, make_batch())
        if observes:
            hidden = copy.deepcopy(estimator)
            hook.observe(hidden(outputs.inputs_2d))
        else:
            estimator(outputs.inputs_2d)
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_observe_wins_over_seeing() -> None:
    states = []
    for is_seen in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        outputs = augmented(hook, make_batch())
        hook.observe(outputs.inputs_3d * 0.9)
        if is_seen:
            estimator(outputs.inputs_2d)
        hook.step()
        assert saw_prediction(hook)
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("frames", [1, 3])
def test_hardness_ratio_is_that_of_the_host(mix: str, frames: int) -> None:
    batch = make_batch(frames=frames)
    hook = make_hook(make_lifter(), mix=mix)
    outputs = augmented(hook, batch)
    originals = batch.inputs_2d.repeat(2 if mix == "append" else 1, 1, 1, 1)
    harder = changed(originals, outputs.inputs_2d)[:, None, None, None]
    off = torch.where(harder, 0.3, 0.1) * torch.tensor([0.6, 0.0, 0.8])
    predicted = root_relative(outputs.inputs_3d, H36M_16)
    predicted[:, :, 1:] = outputs.inputs_3d[:, :, 1:] + off
    hook.observe(predicted)
    hook.step()
    diagnostics = hook.diagnostics()
    assert diagnostics.hardness_ratio == pytest.approx(3.0, rel=1e-3)
    middle = outputs.inputs_3d[harder.flatten(), frames // 2]
    middle[:, 0] = 0  # the trajectory
    from_mean = (middle - middle.mean(0)).norm(dim=-1).mean()
    error = 0.3 * (H36M_16.num_joints - 1) / H36M_16.num_joints
    assert diagnostics.mean_pose_ratio == pytest.approx(error / from_mean.item(), rel=1e-3)


def test_random_preset_needs_no_prediction() -> None:
    hook = make_hook(make_lifter(), preset="random")
    augmented(hook, make_batch())
    hook.step()
    assert hook.diagnostics().updates == 1
