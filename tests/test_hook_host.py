"""Promises 1 to 3: the host is untouched, updates come in order, feedback is isolated."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import h36m_intrinsics, human_poses
from loops import (
    HOOKS,
    OPTIMIZERS,
    UPDATES,
    Batch,
    Host,
    Trace,
    differences,
    frozen_state,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    recorded_steps,
    run_host,
    same_bits,
    stream,
    train,
    train_in_two_processes,
)
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from poseaug_plugin import (
    H36M_16,
    AugmentationPolicy,
    KeypointDiscriminator,
    PartKCSDiscriminator,
    PoseAugError,
    PoseAugHook,
    PoseAugWarning,
    PoseSource,
    Spread,
    apply_augmentation,
    project_points,
    root_relative,
)
from poseaug_plugin.augmentation import bone_angle_change
from poseaug_plugin.bones import filled_tables, joints_to_bones
from poseaug_plugin.config import find_config
from poseaug_plugin.generation import evenly_spaced
from poseaug_plugin.hardness import HardnessPredictor
from poseaug_plugin.isolation import isolated_call, unwrap_module
from poseaug_plugin.losses import estimator_errors
from poseaug_plugin.objectives import Generated, policy_objective


@lru_cache
def batches(count: int = 3) -> tuple[Batch, ...]:
    return tuple(stream(count))


def adam(estimator: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(estimator.parameters(), lr=1e-3)


# -- 1. the host is untouched ----------------------------------------------------------------------

HOSTS = {
    "plain": Host(),
    "no batch norm, no dropout": Host(batch_norm=False, dropout=0.0),
    "frozen layers": Host(frozen=True),
    "gradients left off": Host(gradients_off=True),
    "autocast": Host(autocast=True),
    "scaler": Host(overflows=()),
    "scaler with overflows": Host(overflows=(1, 2)),
    "scaler with overflows, fused": Host(optimizer="adam fused", overflows=(1, 2)),
    "autocast and scaler": Host(autocast=True, overflows=(0,)),
    "accumulation": Host(accumulation=3),
    "accumulation and scaler": Host(accumulation=3, overflows=(2,)),
    "windows": Host(frames=9),
    "windows, autocast and scaler": Host(frames=3, autocast=True, overflows=(1,)),
    "windows, accumulation": Host(frames=3, accumulation=2),
}


def host_batches(host: Host) -> list[Batch]:
    count = 2 if host.overflows is None else 3
    count = count if host.accumulation == 1 else 2 * host.accumulation
    return stream(count, frames=host.frames)


@lru_cache
def without_hook(host: Host) -> Trace:
    return run_host(host, None, host_batches(host))[0]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("host", HOSTS)
def test_host_is_untouched(host: str, hook: str) -> None:
    trace, updates = run_host(HOSTS[host], HOOKS[hook], host_batches(HOSTS[host]))
    assert updates > 0
    assert differences(without_hook(HOSTS[host]), trace) == []


@pytest.mark.parametrize("hook", ["default", "predicted", "estimator, as found"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_host_is_untouched_with_optimizer(optimizer: str, hook: str) -> None:
    host = Host(optimizer=optimizer, overflows=(1,))
    trace, updates = run_host(host, HOOKS[hook], host_batches(host))
    assert updates > 0
    assert differences(without_hook(host), trace) == []


def test_comparison_of_hosts_sees_another_stream() -> None:
    other, _ = run_host(Host(), None, stream(2, seed=1))
    assert differences(without_hook(Host()), other) != []


def test_comparison_of_hosts_sees_one_bit() -> None:
    trace = copy.deepcopy(without_hook(Host()))
    buffer = trace[-1]["buffer 2.running_mean"]
    buffer[0] = torch.nextafter(buffer[0], torch.tensor(9.0))
    assert differences(without_hook(Host()), trace) == ["/1/buffer 2.running_mean"]


def test_building_draws_nothing_from_the_global_streams() -> None:
    estimator = make_lifter()
    before = copy.deepcopy(leavings(estimator))
    make_hook(estimator)
    assert differences(before, leavings(estimator)) == []


def test_state_dict_has_the_same_keys() -> None:
    estimator = make_lifter()
    keys = list(estimator.state_dict())
    make_hook(estimator)
    assert list(estimator.state_dict()) == keys


@pytest.mark.parametrize("kind", ["named_parameters", "named_buffers", "named_modules"])
def test_nothing_is_added_to_the_estimator(kind: str) -> None:
    estimator = make_lifter()
    names = [name for name, _ in getattr(estimator, kind)()]
    train(make_hook(estimator), estimator, adam(estimator), list(batches(1)))
    assert [name for name, _ in getattr(estimator, kind)()] == names


def test_state_dict_loads_where_there_is_no_hook() -> None:
    estimator = make_lifter()
    train(make_hook(estimator), estimator, adam(estimator), list(batches(1)))
    other = make_lifter(seed=1)
    other.load_state_dict(estimator.state_dict())
    assert differences(dict(other.state_dict()), dict(estimator.state_dict())) == []


def test_optimizer_has_no_foreign_parameters() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, list(batches(1)))
    own = {id(p) for p in estimator.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == own


def test_two_hooks_do_not_interfere() -> None:
    def run(first_hook: bool, second_hook: bool) -> tuple[Any, ...]:
        estimators = [make_lifter(seed=seed, dropout=0.0) for seed in (0, 1)]
        hooks = [
            make_hook(estimator, seed=seed) if wanted else None
            for seed, (estimator, wanted) in enumerate(
                zip(estimators, (first_hook, second_hook), strict=True)
            )
        ]
        optimizers = [adam(estimator) for estimator in estimators]
        for batch in batches():
            for hook, estimator, optimizer in zip(hooks, estimators, optimizers, strict=True):
                train(hook, estimator, optimizer, [batch])
        return tuple(hook and frozen_state(hook) for hook in hooks)

    first_alone, second_alone = run(True, False)[0], run(False, True)[1]
    assert differences((first_alone, second_alone), run(True, True)) == []


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    meeting_point = str(tmp_path / "meeting")
    torch.multiprocessing.spawn(train_in_two_processes, args=(meeting_point,), nprocs=2)


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_works_in_full_precision_under_autocast(hook: str) -> None:
    states = []
    for lowers in (False, True):
        estimator = make_lifter(dropout=0.0)
        attached = make_hook(estimator, **HOOKS[hook])
        for camera, inputs_3d, inputs_2d in batches(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=lowers):
                outputs = attached.augment(inputs_2d, inputs_3d, camera)
                attached.observe(outputs.inputs_3d + 0.1)
                attached.step()
        states.append((copy.deepcopy(outputs), frozen_state(attached)))
    assert differences(*states) == []


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_works_in_single_precision_for_a_host_in_double(hook: str) -> None:
    states = []
    for default in (torch.float32, torch.float64):
        estimator = make_lifter(dropout=0.0).double()
        optimizer = adam(estimator)
        torch.set_default_dtype(default)
        try:
            attached = make_hook(estimator, **HOOKS[hook])
            for camera, *poses in batches(2):
                inputs_3d, inputs_2d = (x.double() for x in poses)
                outputs = attached.augment(inputs_2d, inputs_3d, camera)
                optimizer.zero_grad()
                (estimator(outputs.inputs_2d) - outputs.inputs_3d).square().mean().backward()
                optimizer.step()
            assert torch.get_default_dtype() == default
        finally:
            torch.set_default_dtype(torch.float32)
        assert {p.dtype for p in attached.policy.parameters()} <= {torch.float32}
        assert outputs.inputs_2d.dtype == outputs.inputs_3d.dtype == torch.float64
        assert attached.diagnostics().updates == 2
        states.append((copy.deepcopy(outputs), frozen_state(attached)))
    assert differences(*states) == []


@contextmanager
def set_default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


WAYS_TO_SET_A_DEVICE = [set_default_device, torch.device]


@pytest.mark.parametrize("default_device", WAYS_TO_SET_A_DEVICE)
@pytest.mark.parametrize("hook", HOOKS)
def test_default_device_of_the_host_changes_nothing(hook: str, default_device: Any) -> None:
    # "meta" stands for a GPU: whatever is put there by accident cannot be computed with.
    data = stream(2, frames=3)
    sequences = [poses.numpy() for poses in make_batch(8, frames=9).inputs_3d]
    cameras = h36m_intrinsics(8).numpy()
    states = []
    for device in ("cpu", "meta"):
        estimator = make_lifter(dropout=0.0, frames=3)
        # Not Adam: up to torch 2.4 its step counts are on the default device.
        optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
        filled_tables.cache_clear()
        with default_device(device):
            source = PoseSource(sequences, cameras)
            attached = make_hook(estimator, source=source, **HOOKS[hook])
            for camera, inputs_3d, inputs_2d in data:
                outputs = attached.augment(inputs_2d, inputs_3d, camera.numpy(), return_camera=True)
                optimizer.zero_grad()
                (estimator(outputs[0]) - outputs[1]).square().mean().backward()
                optimizer.step()
            filled_tables.cache_clear()
            assert attached.check_batch(*outputs)
            assert torch.empty(0).device.type == device
        assert attached.diagnostics().updates == 2
        states.append((copy.deepcopy(outputs), frozen_state(attached)))
    assert differences(*states) == []


@pytest.mark.parametrize("default_device", WAYS_TO_SET_A_DEVICE)
def test_estimator_is_asked_under_the_hosts_own_defaults(default_device: Any) -> None:
    found = []

    class Lifter(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            found.append((torch.empty(0).device.type, torch.get_default_dtype()))
            return super().forward(inputs.flatten(1)).reshape(-1, 1, 16, 3)

    estimator = Lifter(32, 48)
    hook = make_hook(estimator, feedback="estimator")
    camera, inputs_3d, inputs_2d = make_batch()
    with default_device("meta"):
        torch.set_default_dtype(torch.float64)
        try:
            hook.augment(inputs_2d, inputs_3d, camera)
            hook.step()
        finally:
            torch.set_default_dtype(torch.float32)
    assert found
    assert set(found) == {("meta", torch.float64)}


def test_policy_made_in_double_is_trained_in_single_precision() -> None:
    policy = AugmentationPolicy(H36M_16).double()
    estimator = make_lifter(dropout=0.0)
    hook = make_hook(estimator, policy=policy)
    before = [p.detach().clone() for p in policy.parameters()]
    train(hook, estimator, adam(estimator), list(batches(2)))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert any(not torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))


# -- 2. order --------------------------------------------------------------------------------------


def order_of_steps(updates: int, **options: Any) -> list[str]:
    estimator = make_lifter()
    hook = make_hook(estimator, **options)
    with recorded_steps(hook, estimator) as order:
        train(hook, estimator, adam(estimator), list(batches(updates)))
    return order


CRITICS, LAST = ["critic_3d", "critic_2d"], ["predictor", "estimator"]


def test_policy_then_critics_then_predictor_then_estimator() -> None:
    order = order_of_steps(2, critic_interval=1)
    assert order == 2 * ["policy", *CRITICS, *LAST]


def test_critics_learn_at_every_second_update() -> None:
    assert order_of_steps(4) == 2 * ["policy", *CRITICS, *LAST, "policy", *LAST]


def test_policy_and_critics_take_turns() -> None:
    order = order_of_steps(4, policy_interval=2, critic_interval=2)
    assert order == 2 * [*CRITICS, *LAST, "policy", *LAST]


def test_networks_rest_for_as_long_as_they_are_told_to() -> None:
    learners = [CRITICS, [], ["policy"], [], CRITICS, ["policy"]]
    order = order_of_steps(6, policy_interval=3, critic_interval=4)
    assert order == [name for learn in learners for name in (*learn, *LAST)]


def test_losses_of_a_network_stay_until_it_learns_again() -> None:
    estimator, seen = make_lifter(), []
    hook, optimizer = make_hook(estimator, policy_interval=2), adam(estimator)
    for batch in batches(3):
        train(hook, estimator, optimizer, [batch])
        seen.append((hook.losses.policy.total.item(), hook.losses.critic_3d.item()))
    first, second, third = seen
    assert math.isnan(first[0])
    assert math.isfinite(first[1])
    assert second[1] == first[1]
    assert third[1] != first[1]
    assert math.isfinite(second[0])
    assert third[0] == second[0]


@pytest.mark.parametrize(("update_batch", "learned_from"), [(None, 16), (5, 5)])
def test_without_a_graph_critics_see_the_poses_that_were_given_away(
    update_batch: int | None, learned_from: int
) -> None:
    # The policy's turn makes the poses again, with a graph: the same ones.
    options = {"mix": "append", "update_batch": update_batch, "policy_interval": 2}
    hook, batch = make_hook(make_lifter(), **options), make_batch()
    hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    augmented, augmenter = hook._pending.augmented, hook._trainer.augmenter
    kept = augmenter.generate(augmented.draft, augmented.made)
    again = augmenter.generate(augmented.draft)
    assert len(kept.keypoints) == len(kept.poses.bent) == learned_from
    assert not kept.poses.bent.requires_grad
    assert again.poses.bent.requires_grad
    assert torch.equal(kept.poses.bent, again.poses.bent)
    assert torch.equal(kept.bone_angle_change, again.bone_angle_change)
    if update_batch is None:  # else the places come from other poses, those of the smaller batch
        assert torch.equal(kept.keypoints, again.keypoints)


def test_no_poses_are_kept_that_the_update_makes_again() -> None:
    hook, batch = make_hook(make_lifter()), make_batch()
    hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    assert hook._pending.augmented.made is None


@pytest.mark.parametrize(
    ("update_batch", "learned_from", "fitted_on"), [(5, 5, 5), (None, 16, 32), (16, 16, 16)]
)
def test_an_update_learns_from_so_many_poses_at_most(
    update_batch: int | None,
    learned_from: int,
    fitted_on: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: dict[str, list[int]] = {"critic": [], "predictor": []}
    judge, predict = PartKCSDiscriminator.forward, HardnessPredictor.forward

    def judging(critic: PartKCSDiscriminator, joints: Tensor) -> Tensor:
        sizes["critic"].append(len(joints))
        return judge(critic, joints)

    def predicting(predictor: HardnessPredictor, keypoints: Tensor, joints: Tensor) -> Tensor:
        sizes["predictor"].append(len(joints))
        return predict(predictor, keypoints, joints)

    monkeypatch.setattr(PartKCSDiscriminator, "forward", judging)
    monkeypatch.setattr(HardnessPredictor, "forward", predicting)
    estimator = make_lifter()
    hook = make_hook(estimator, mix="append", update_batch=update_batch)
    train(hook, estimator, adam(estimator), list(batches(1)))
    # In the policy's loss, then real and fake together in the critic's own.
    assert sizes["critic"] == [learned_from, 2 * learned_from]
    # In the feedback, then in its own fit.
    assert sizes["predictor"] == [learned_from, fitted_on]


def test_the_estimator_is_asked_about_no_more_poses_than_that() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, mix="append", feedback="estimator", update_batch=5)
    optimizer = adam(estimator)
    asked = []
    handle = estimator.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    train(hook, estimator, optimizer, list(batches(1)))
    handle.remove()
    assert sorted(set(asked)) == [5, 32]


def test_the_poses_of_an_update_are_spread_over_the_batch() -> None:
    rows = evenly_spaced(10, 4, torch.device("cpu"))
    assert rows is not None
    assert rows.tolist() == [0, 2, 5, 7]
    assert evenly_spaced(4, 4, torch.device("cpu")) is None


@pytest.mark.parametrize("optimizer", ["found", "named"])
def test_one_update_per_step(optimizer: str) -> None:
    estimator = make_lifter()
    own = adam(estimator)
    hook = make_hook(estimator, own) if optimizer == "named" else make_hook(estimator)
    train(hook, estimator, own, list(batches(3)))
    assert hook.diagnostics().updates == 3


def test_one_update_per_accumulated_step() -> None:
    assert run_host(Host(accumulation=3), {}, stream(6))[1] == 2


def test_no_update_in_a_skipped_step() -> None:
    assert run_host(Host(overflows=(1, 2)), {}, list(batches(4)))[1] == 2


def test_steps_that_the_device_skips_are_not_the_hooks_fault() -> None:
    estimator = make_lifter()
    optimizer = OPTIMIZERS["adam fused"](estimator.parameters())
    hook = make_hook(estimator)
    for camera, inputs_3d, inputs_2d in stream(3):
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.found_inf = torch.ones(())  # as GradScaler leaves it
        optimizer.step()
    assert hook.diagnostics().skipped_steps == 0


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
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(adjacency, inputs_2d), inputs_3d).backward()
    hook.step()
    assert hook.diagnostics().hardness_ratio > 0  # the prediction was seen


def test_functional_transforms_of_the_estimator_work_while_a_batch_waits() -> None:
    estimator = make_lifter(batch_norm=False)
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)

    def loss(keypoints: Tensor) -> Tensor:
        return mpjpe(estimator(keypoints), inputs_3d)

    assert torch.func.grad(loss)(inputs_2d).isfinite().all()
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    hook.step()
    assert hook.diagnostics().hardness_ratio > 0


class FullyShardedDataParallel(nn.Sequential):
    """Called as torch's."""


@pytest.mark.parametrize("wrap", [lambda x: x, nn.Sequential])
def test_sharded_estimators_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(PoseAugError, match=r"FSDP shards .*use DistributedDataParallel"):
        make_hook(wrap(FullyShardedDataParallel(make_lifter())))


def test_no_network_learns_in_a_step_that_the_device_skips() -> None:
    # With a fused optimizer GradScaler calls step() and lets the kernel drop it.
    estimator = make_lifter()
    optimizer = OPTIMIZERS["adam fused"](estimator.parameters())
    scaler = torch.amp.GradScaler("cpu")
    hook = make_hook(estimator)
    with recorded_steps(hook, estimator) as order:
        for overflows in (True, False):
            camera, inputs_3d, inputs_2d = make_batch()
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
            optimizer.zero_grad()
            scaler.scale(mpjpe(estimator(inputs_2d), inputs_3d)).backward()
            if overflows:
                estimator[1].weight.grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            if overflows:
                assert order == []
    assert order[0] == "policy"
    assert order[-1] == "estimator"


def test_feedback_asks_the_estimator_before_it_changes() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator, feedback="estimator")
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    before = estimator[1].weight.detach().clone()
    asked = []
    handle = estimator.register_forward_pre_hook(
        lambda module, _: asked.append(module[1].weight.detach().clone())
    )
    optimizer.step()
    handle.remove()
    assert asked
    assert all(torch.equal(weight, before) for weight in asked)
    assert not torch.equal(estimator[1].weight, before)


def test_another_optimizer_is_ignored() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    other = make_lifter(seed=1)
    optimizer = adam(other)
    camera, inputs_3d, inputs_2d = make_batch()
    hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(other(inputs_2d), inputs_3d).backward()
    optimizer.step()
    assert hook.diagnostics().updates == 0


def test_of_two_optimizers_the_named_one_counts() -> None:
    estimator = make_lifter()
    first, second = (torch.optim.SGD(estimator[i].parameters(), lr=0.1) for i in (1, 5))
    hook = make_hook(estimator, second)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    first.step()
    assert hook.diagnostics().updates == 0
    second.step()
    assert hook.diagnostics().updates == 1


def test_step_by_hand_and_then_the_optimizer_train_once() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    hook.step()
    after = frozen_state(hook)
    optimizer.step()
    assert hook.diagnostics().updates == 1
    assert differences(after, hook.state_dict()) == []


def test_step_by_hand_is_what_the_optimizer_would_have_done() -> None:
    states = []
    for by_hand in (False, True):
        estimator = make_lifter()
        optimizer = adam(estimator)
        hook = make_hook(estimator)
        camera, inputs_3d, inputs_2d = make_batch()
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        if by_hand:
            hook.step()
        optimizer.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_what_a_closure_augments_is_learned_from_before_the_next_step() -> None:
    # Lightning's loop: the whole pass happens inside the optimizer's step.
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    for done, batch in enumerate(batches(3), start=1):

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            inputs_2d, inputs_3d = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
            loss = mpjpe(estimator(inputs_2d), inputs_3d)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert hook.diagnostics().updates == done


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_optimizer_step_does_not_take_the_hooks_training_in() -> None:
    from torch._dynamo.testing import CompileCounter

    sizes = []
    for attaches in (False, True):
        torch._dynamo.reset()
        estimator = make_lifter()
        optimizer = adam(estimator)
        hook = make_hook(estimator) if attaches else None
        counter = CompileCounter()
        step = torch.compile(lambda o=optimizer: o.step(), backend=counter)
        for camera, inputs_3d, inputs_2d in batches(3):
            if hook is not None:
                inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
            optimizer.zero_grad()
            mpjpe(estimator(inputs_2d), inputs_3d).backward()
            step()
        if hook is not None:
            assert hook.diagnostics().updates == 3
        sizes.append(counter.op_count)
    torch._dynamo.reset()
    without, with_hook = sizes
    assert 0 < with_hook <= without


def test_step_without_a_batch_does_nothing() -> None:
    hook = make_hook(make_lifter())
    before = frozen_state(hook)
    hook.step()
    assert differences(before, hook.state_dict()) == []


def test_optimizer_without_step_hooks_is_refused() -> None:
    class Wrapped:
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner
            self.param_groups = inner.param_groups

    estimator = make_lifter()
    with pytest.raises(PoseAugError, match=r"Wrapped has no step hooks.*hook\.step\(\)"):
        make_hook(estimator, Wrapped(adam(estimator)))


def test_optimizer_of_another_estimator_is_refused() -> None:
    with pytest.raises(PoseAugError, match="holds none of the estimator's parameters"):
        make_hook(make_lifter(), adam(make_lifter()))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(PoseAugError, match=r"must be a torch\.nn\.Module, got function"):
        make_hook(lambda x: x)  # type: ignore[arg-type]


# -- failures inside -------------------------------------------------------------------------------


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


def failing_step() -> tuple[Touchy, PoseAugHook, torch.optim.Optimizer, dict[str, Any]]:
    """Everything right before an ``optimizer.step()`` that will fail, and how it stood."""
    estimator = Touchy()
    optimizer = adam(estimator)
    hook = make_hook(estimator, feedback="estimator")
    estimator.touchy = False
    train(hook, estimator, optimizer, list(batches(1)))
    estimator.touchy = True
    camera, inputs_3d, inputs_2d = make_batch(seed=5)
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    optimizer.zero_grad()
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    return estimator, hook, optimizer, copy.deepcopy(leavings(estimator, optimizer))


def test_failure_leaves_the_host_as_it_was() -> None:
    estimator, _, optimizer, before = failing_step()
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert differences(before, leavings(estimator, optimizer)) == []


def test_failure_says_what_happened_and_what_to_do() -> None:
    kept_alive = failing_step()
    with pytest.raises(RuntimeError) as raised:
        kept_alive[2].step()
    message = str(raised.value)
    assert message.startswith("PoseAugHook.step failed (KeyError")
    assert "not like this" in message
    assert "The estimator has not been changed" in message
    assert "hook.enabled = False" in message
    assert isinstance(raised.value.__cause__, KeyError)


def test_after_a_failure_training_goes_on_with_the_hook_off() -> None:
    estimator, hook, optimizer, before = failing_step()
    with pytest.raises(RuntimeError):
        optimizer.step()
    hook.enabled = False
    optimizer.step()
    weight = estimator.lifter[1].weight.detach()
    assert not torch.equal(weight, before["weight lifter.1.weight"])


def test_after_a_failure_the_hook_can_go_on() -> None:
    estimator, hook, optimizer, _ = failing_step()
    with pytest.raises(RuntimeError):
        optimizer.step()
    estimator.touchy = False
    train(hook, estimator, optimizer, list(batches(1)))
    assert hook.diagnostics().updates == 2


@pytest.mark.parametrize("hook", HOOKS)
def test_no_stream_of_a_gpu_is_seeded(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.manual_seed seeds them all, also where the hook has nothing to do with them.
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3]
    estimator = make_lifter(frozen=True)
    seeded.clear()
    attached = make_hook(estimator, **HOOKS[hook])
    train(attached, estimator, adam(estimator), list(batches(2)))
    assert seeded == []


# -- 3. isolation ----------------------------------------------------------------------------------

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


@each_mode
def test_failing_isolated_call_leaves_no_trace(mode: str) -> None:
    estimator = Touchy()
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


@each_mode
def test_feedback_gradient_is_that_of_finite_differences(mode: str) -> None:
    torch.manual_seed(0)
    policy = AugmentationPolicy(H36M_16, spread=Spread(pitch=0.2, bone_angle=0.05)).double()
    nn.init.normal_(policy.widening, std=0.01)
    estimator = make_lifter().double()
    joints = human_poses(6, 1, H36M_16, own_stream())
    camera = h36m_intrinsics(6)
    noise = torch.randn(6, policy.noise_size, generator=own_stream(), dtype=torch.float64)
    config = find_config(
        "default",
        {
            **{"feedback": "estimator", "moved_weight": 1.0, "bent_weight": 0.5},
            **{"weight_3d": 0.0, "weight_2d": 0.0, "range_weight": 0.0, "frame_weight": 0.0},
            "feedback_loss": "paper",
        },
    )
    critics = (PartKCSDiscriminator(H36M_16, width=4), KeypointDiscriminator(H36M_16))

    def loss() -> Tensor:
        generator = own_stream(1)  # the same dropout every time

        def error_of(keypoints: Tensor, poses: Tensor) -> Tensor:
            predicted = isolated_call(estimator, keypoints, generator, mode)
            target = root_relative(poses, H36M_16)
            return estimator_errors(predicted, target, "mpjpe", H36M_16)

        parameters = policy(joints, noise)
        poses = apply_augmentation(joints, parameters, H36M_16)
        seen = [project_points(p, camera) for p in (joints, poses.moved)]
        weights = torch.ones(6, dtype=torch.float64)
        turned = bone_angle_change(joints[:, 0], poses.bent[:, 0], H36M_16)
        generated = Generated(
            *(joints, seen[0], parameters, poses, seen[1], camera, camera, weights, turned)
        )
        d3d, d2d = (critic.double() for critic in critics)
        return policy_objective(generated, d3d, d2d, error_of, config, H36M_16).total

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


def test_without_auto_step_only_a_call_trains() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, auto_step=False)
    optimizer = adam(estimator)
    train(hook, estimator, optimizer, list(batches(2)))
    assert hook.diagnostics().updates == 0
    camera, inputs_3d, inputs_2d = make_batch()
    estimator(hook.augment(inputs_2d, inputs_3d, camera)[0])
    hook.step()
    assert hook.diagnostics().updates == 1


@pytest.mark.parametrize("name", ["default", "predicted"])
def test_hook_never_calls_the_estimator(name: str) -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, **HOOKS[name])
    calls = []
    estimator.register_forward_hook(lambda *_: calls.append(1))
    train(hook, estimator, adam(estimator), list(batches(2)))
    assert len(calls) == 2


# -- seeing the estimator's prediction -------------------------------------------------------------


def sees_prediction(estimator: nn.Module, batch: Batch | None = None, **options: Any) -> bool:
    """Whether the predictor could learn from a training step."""
    hook = make_hook(estimator, **options)
    train(hook, estimator, adam(estimator), [batch or make_batch()])
    return bool(hook.losses.predictor.isfinite())


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
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
    estimator(inputs_2d)
    hook.step()
    assert hook.losses.predictor.isfinite()


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
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
    estimator(given(inputs_2d))
    hook.step()
    assert hook.losses.predictor.isfinite()


def test_evaluation_between_augment_and_step_is_not_taken_for_training() -> None:
    states = []
    for evaluates in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        camera, inputs_3d, inputs_2d = make_batch()
        inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
        estimator(inputs_2d)
        if evaluates:
            with torch.no_grad():
                estimator(make_batch(seed=3).inputs_2d)
        hook.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_pass_with_the_augmented_batch_wins_over_one_that_only_looks_like_it() -> None:
    states = []
    for looks_alike in (False, True):
        estimator = make_lifter(dropout=0.0, batch_norm=False)
        hook = make_hook(estimator)
        camera, inputs_3d, inputs_2d = make_batch()
        inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
        estimator(inputs_2d)
        if looks_alike:
            estimator(make_batch(seed=3).inputs_2d)
        hook.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_passes_with_parts_of_the_batch_are_put_together(order: tuple[int, ...]) -> None:
    states = []
    for sees in (True, False):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        camera, inputs_3d, inputs_2d = make_batch()
        inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
        parts = inputs_2d.split((4, 7, 5))
        if not sees:
            parts = tuple(part.clone() for part in parts)
        said = {part: estimator(parts[part]) for part in order}
        if not sees:
            hook.observe(torch.cat([said[part] for part in range(3)]))
        hook.step()
        assert hook.losses.predictor.isfinite()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def states_after(passes: list[Callable[[Tensor], Tensor]], frames: int = 1) -> dict[str, Any]:
    """What a hook has learned from these passes of one batch, each with dropout of its own."""
    estimator = make_lifter()
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch(frames=frames)
    inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
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
    assert differences(states_after(passes), states_after(same_as)) == []


def test_first_of_several_frames_that_are_lifted_alone_counts() -> None:
    first, second = lambda x: x[:, 1:2], lambda x: x[:, 2:3]
    once = states_after([first], frames=3)
    assert differences(states_after([first, second], frames=3), once) == []
    assert differences(states_after([second], frames=3), once) != []


@pytest.mark.parametrize(
    ("parts", "warning"),
    [
        ([lambda x: x[:8]], "was not seen"),
        ([lambda x: x[:8], lambda x: x[4:12]], "was not seen"),
        ([lambda x: x[0::2], lambda x: x[1::2]], "is not .batch"),
    ],
    ids=["missing", "overlapping", "every other"],
)
def test_parts_that_do_not_make_up_the_batch_are_no_prediction(
    parts: list[Any], warning: str
) -> None:
    with pytest.warns(PoseAugWarning, match="was not seen"):
        without = states_after([])
    with pytest.warns(PoseAugWarning, match=warning):
        assert differences(states_after(parts), without) == []


def test_output_without_dimensions_is_no_prediction() -> None:
    estimator = Called(lambda x: x, lambda joints: {"loss": joints.mean(), "joints": joints})
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, _ = hook.augment(inputs_2d, inputs_3d, camera)
    estimator(inputs_2d)
    with pytest.warns(PoseAugWarning, match="observe"):
        hook.step()


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


@pytest.mark.parametrize("feedback", ["predicted", "estimator"])
def test_state_dict_of_a_wrapped_estimator_keeps_its_keys(feedback: str) -> None:
    estimator = nn.DataParallel(make_lifter())
    keys = list(estimator.state_dict())
    hook = make_hook(estimator, feedback=feedback)
    train(hook, estimator, adam(estimator), list(batches(1)))
    assert list(estimator.state_dict()) == keys


# -- control ---------------------------------------------------------------------------------------


def passes_through(hook: PoseAugHook) -> bool:
    camera, inputs_3d, inputs_2d = make_batch()
    outputs = hook.augment(inputs_2d, inputs_3d, camera)
    return outputs[0] is inputs_2d and outputs[1] is inputs_3d


def hooks_on(estimator: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """How many callbacks hang on what, in the module, in the optimizer, and globally."""
    gc.collect()  # hooks of other tests
    found = [
        *(len(getattr(estimator, name)) for name in vars(estimator) if name.endswith("_hooks")),
        len(estimator._forward_hooks_with_kwargs),
        *(len(getattr(optimizer, name)) for name in vars(optimizer) if name.endswith("_hooks")),
        len(torch_optimizer._global_optimizer_pre_hooks),
        len(torch_optimizer._global_optimizer_post_hooks),
    ]
    modules = (name for name in vars(nn.modules.module) if name.startswith("_global_"))
    return found + [len(getattr(nn.modules.module, n)) for n in modules if n.endswith("_hooks")]


def test_removed_hook_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator, optimizer)
    assert hooks_on(estimator, optimizer) != before
    train(hook, estimator, optimizer, list(batches(1)))
    hook.remove()
    assert hooks_on(estimator, optimizer) == before


def test_forgotten_hook_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, list(batches(1)))
    del hook
    assert hooks_on(estimator, optimizer) == before


def test_removed_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    hook.remove()
    assert passes_through(hook)


def test_removed_hook_cannot_be_switched_on_again() -> None:
    hook = make_hook(make_lifter())
    hook.remove()
    hook.enabled = True
    assert passes_through(hook)


def test_removed_hook_trains_no_more() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    before = frozen_state(hook)
    hook.remove()
    optimizer.step()
    hook.step()
    assert differences(before, hook.state_dict()) == []


def test_a_hook_removed_while_paused_stays_removed() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        hook.remove()
    assert passes_through(hook)


def test_removing_twice_is_fine() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    hook = make_hook(estimator)
    hook.remove()
    hook.remove()
    assert hooks_on(estimator, optimizer) == before


def test_failed_construction_hangs_nowhere() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    before = hooks_on(estimator, optimizer)
    with pytest.raises(PoseAugError):
        make_hook(estimator, skeleton="no such skeleton")
    assert hooks_on(estimator, optimizer) == before


def test_paused_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        assert passes_through(hook)
    assert not passes_through(hook)


def test_paused_hook_trains_nothing() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    before = frozen_state(hook)
    with hook.paused():
        train(hook, estimator, adam(estimator), list(batches(2)))
    assert differences(before, hook.state_dict()) == []


def test_pause_ends_with_an_exception() -> None:
    hook = make_hook(make_lifter())
    with pytest.raises(KeyboardInterrupt), hook.paused():
        raise KeyboardInterrupt
    assert hook.enabled


def test_pause_inside_a_pause() -> None:
    hook = make_hook(make_lifter())
    with hook.paused():
        with hook.paused():
            pass
        assert passes_through(hook)


def test_disabled_hook_passes_batches_through() -> None:
    hook = make_hook(make_lifter())
    hook.enabled = False
    assert passes_through(hook)


def test_disabled_hook_does_not_train_on_an_earlier_batch() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    hook.enabled = False
    before = frozen_state(hook)
    adam(estimator).step()
    assert differences(before, hook.state_dict()) == []


# -- copies ----------------------------------------------------------------------------------------


def test_copied_estimator_works() -> None:
    estimator = make_lifter(dropout=0.0)
    make_hook(estimator)
    inputs = make_batch().inputs_2d
    assert torch.equal(copy.deepcopy(estimator)(inputs), estimator(inputs))


def test_copied_estimator_is_not_observed() -> None:
    # An exponential moving average, or a best model that somebody keeps.
    states = []
    for copied in (False, True):
        estimator = make_lifter(dropout=0.0)
        hook = make_hook(estimator)
        camera, inputs_3d, inputs_2d = make_batch()
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        loss = mpjpe(estimator(inputs_2d), inputs_3d)
        if copied:
            copy.deepcopy(estimator)(inputs_2d * 2)
        loss.backward()
        adam(estimator).step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_optimizer_of_a_copy_is_ignored() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    copied, optimizer = copy.deepcopy((estimator, adam(estimator)))
    camera, inputs_3d, inputs_2d = make_batch()
    inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
    mpjpe(copied(inputs_2d), inputs_3d).backward()
    optimizer.step()
    assert hook.diagnostics().updates == 0


@pytest.mark.filterwarnings("ignore:You are using .torch.load.:FutureWarning")  # torch 2.4's own
def test_pickled_estimator_and_optimizer_work() -> None:
    estimator = make_lifter(dropout=0.0)
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, list(batches(1)))
    inputs = make_batch().inputs_2d
    copied, copied_optimizer = pickle.loads(pickle.dumps((estimator, optimizer)))
    copied(inputs).sum().backward()
    copied_optimizer.step()
    assert not same_bits(copied[1].weight, estimator[1].weight)


def test_saved_estimator_loads_without_the_package(tmp_path: Path) -> None:
    estimator = make_lifter(dropout=0.0)
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, list(batches(1)))
    inputs = make_batch().inputs_2d
    torch.save((estimator, optimizer, copy.deepcopy(estimator)), tmp_path / "whole.pt")
    torch.save((inputs, estimator(inputs).detach()), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["poseaug_plugin"] = None
import torch
torch.set_num_threads(1)
estimator, optimizer, copied = torch.load({str(tmp_path / "whole.pt")!r}, weights_only=False)
inputs, expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
torch.testing.assert_close((estimator(inputs), copied(inputs)), (expected, expected))
estimator(inputs).sum().backward()
optimizer.step()
assert not any(name.startswith("poseaug_plugin.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# -- torch.compile ---------------------------------------------------------------------------------


COMPILED = {
    **{name: HOOKS[name] for name in ("default", "predicted", "random", "released")},
    **{name: UPDATES[name] for name in ("append", "in turn", "regressors")},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("case", COMPILED)
def test_hook_compiles_whole_and_once(
    case: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No graph breaks, nothing new after every kind of step was seen, and the same results."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    states = []
    for compiles in (False, True):
        estimator = make_lifter(batch_norm=False, frames=frames)
        optimizer = adam(estimator)
        hook = make_hook(estimator, **COMPILED[case], compile=compiles)
        train(hook, estimator, optimizer, stream(4, frames=frames))
        compiled = counters["stats"]["unique_graphs"]
        assert bool(compiled) == compiles
        train(hook, estimator, optimizer, stream(4, seed=1, frames=frames))
        assert counters["stats"]["unique_graphs"] == compiled
        assert hook.diagnostics().updates == 8
        states.append(frozen_state(hook))
    assert counters["graph_break"] == {}
    assert differences(*states) == []


def test_compiled_function_does_not_fill_the_skeletons_tables() -> None:
    torch._dynamo.reset()
    operators = []

    def look(module: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        operators.extend(node.op for node in module.graph.nodes)
        return module

    compiled = torch.compile(partial(joints_to_bones, skeleton=H36M_16), backend=look)
    joints = torch.randn(2, 16, 3)
    assert torch.equal(compiled(joints), joints_to_bones(joints, H36M_16))
    assert operators.count("call_function") + operators.count("call_method") == 3
