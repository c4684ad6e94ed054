"""Order: one update per real optimizer step and before it, networks in turn, skipped steps skipped.

Closures, steps by hand and several optimizers keep it too; an optimizer that cannot is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import (
    ASKING,
    HOOKS,
    OPTIMIZERS,
    PUBLISHED,
    Batch,
    Host,
    SmallDefault,
    adam,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    recorded_steps,
    run_host,
    stream,
    train,
)
from torch import Tensor, nn

from poseaug_plugin import HostPoses, PartKCSCritic, PoseAdapter, PoseAugError
from poseaug_plugin.augment.augmenter import evenly_spaced
from poseaug_plugin.reference.recipes import Paper

CRITICS, LAST = ["critic_3d", "critic_2d"], ["estimator"]


def order_of_steps(updates: int, *, frames: int = 1, **options: Any) -> list[str]:
    estimator = make_lifter(frames=frames)
    hook = make_hook(estimator, **options)
    with recorded_steps(hook, estimator) as order:
        train(hook, estimator, adam(estimator), stream(updates, frames=frames))
    return order


@pytest.mark.parametrize("frames", [1, 3])
def test_policy_then_critics_then_estimator(frames: int) -> None:
    order = order_of_steps(2, frames=frames, preset=SmallDefault(critic_interval=1))
    assert order == 2 * ["policy", *CRITICS, *LAST]


def test_critics_learn_at_every_second_update() -> None:
    assert order_of_steps(4) == 2 * ["policy", *CRITICS, *LAST, "policy", *LAST]


@pytest.mark.parametrize("hook", ASKING)
def test_published_presets_keep_the_same_order(hook: str) -> None:
    assert order_of_steps(2, **HOOKS[hook]) == ["policy", *CRITICS, *LAST, "policy", *LAST]


def test_without_critics_the_policy_learns_alone() -> None:
    assert order_of_steps(2, critic_weight=0) == 2 * ["policy", *LAST]


def test_networks_rest_for_as_long_as_they_are_told_to() -> None:
    learners = [["policy", *CRITICS], [], ["policy"], [], ["policy", *CRITICS], []]
    order = order_of_steps(6, preset=SmallDefault(interval=2, critic_interval=2))
    assert order == [name for learn in learners for name in (*learn, *LAST)]


def test_default_learns_in_one_update_of_eight() -> None:
    order = order_of_steps(9, preset="default")
    assert order == ["policy", *CRITICS, *8 * LAST, "policy", *CRITICS, *LAST]


def test_losses_of_a_network_stay_until_it_learns_again() -> None:
    estimator, seen = make_lifter(), []
    hook, optimizer = make_hook(estimator, preset=SmallDefault(interval=2)), adam(estimator)
    assert math.isnan(hook.losses["policy"].item())
    for batch in stream(5):
        train(hook, estimator, optimizer, [batch])
        seen.append((hook.losses["policy"].item(), hook.losses["critic_3d"].item()))
    first, second, third, fourth, fifth = seen
    assert all(map(math.isfinite, first))
    assert second == first
    assert third[0] != first[0]
    assert third[1] == first[1]
    assert fourth == third
    assert fifth[1] != first[1]


# -- what an update learns from --------------------------------------------------------------------


@pytest.mark.parametrize(("learn_from", "learned_from"), [(None, 16), (5, 5)])
def test_an_update_makes_the_poses_again_that_were_given_away(
    learn_from: int | None, learned_from: int
) -> None:
    hook = make_hook(make_lifter(), mix="append", preset=SmallDefault(learn_from=learn_from))
    augmented(hook, make_batch())
    batch, augmenter = hook._pending.batch, hook._trainer.augmenter
    again = augmenter.generate(batch.inputs)
    assert len(again.keypoints) == len(again.poses.bent) == learned_from
    assert again.poses.bent.requires_grad
    if learn_from is None:  # else the places come from other poses, those of the smaller batch
        assert torch.equal(again.poses.moved, batch.joints)
        assert torch.equal(again.keypoints, batch.keypoints)


def test_nothing_is_kept_for_an_update_that_learns_nothing() -> None:
    hook = make_hook(make_lifter(), preset=SmallDefault(interval=2))
    for keeps in (True, False, True):
        augmented(hook, make_batch())
        assert (hook._pending.batch.inputs is not None) == keeps
        hook.step()


@pytest.mark.parametrize(("learn_from", "learned_from"), [(5, 5), (None, 16), (16, 16)])
def test_an_update_learns_from_so_many_poses_at_most(
    learn_from: int | None, learned_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    judge = PartKCSCritic.forward

    def judging(critic: PartKCSCritic, joints: Tensor) -> Tensor:
        sizes.append(len(joints))
        return judge(critic, joints)

    monkeypatch.setattr(PartKCSCritic, "forward", judging)
    estimator = make_lifter()
    hook = make_hook(estimator, mix="append", preset=SmallDefault(learn_from=learn_from))
    train(hook, estimator, adam(estimator), stream(1))
    # In the policy's loss, then real and fake together in the critic's own.
    assert sizes == [learned_from, 2 * learned_from]


def test_the_default_learns_from_128_poses_at_most() -> None:
    hook = make_hook(make_lifter(), preset="default", mix="append")
    augmented(hook, make_batch(200))
    assert hook._pending.batch.inputs.noise.shape[0] == 128


@pytest.mark.parametrize("hook", ASKING)
def test_the_published_presets_ask_the_estimator_about_every_augmented_pose(hook: str) -> None:
    estimator = make_lifter()
    attached = make_hook(estimator, mix="append", **HOOKS[hook])
    optimizer = adam(estimator)
    asked = []
    handle = estimator.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    train(attached, estimator, optimizer, stream(1))
    handle.remove()
    assert sorted(set(asked)) == [16, 32]


@pytest.mark.parametrize("mix", ["replace", "append"])
@pytest.mark.parametrize("hook", ASKING)
def test_adapters_are_given_the_hosts_own_samples(hook: str, mix: str) -> None:
    seen: list[HostPoses] = []

    class Watching(PoseAdapter):
        def encode(self, joints: Any, keypoints: Any, like: HostPoses, skeleton: Any) -> HostPoses:
            seen.append(like)
            return super().encode(joints, keypoints, like, skeleton)

    attached, batch = (
        make_hook(make_lifter(), adapter=Watching(), mix=mix, **HOOKS[hook]),
        make_batch(),
    )
    augmented(attached, batch)
    rows = attached._pending.batch.sources
    attached.step()
    assert len(seen) > 2
    for like in seen:
        assert torch.equal(like.inputs_2d, batch.inputs_2d[rows])
        assert torch.equal(like.inputs_3d, batch.inputs_3d[rows])


def test_the_poses_of_an_update_are_spread_over_the_batch() -> None:
    rows = torch.arange(10)
    assert evenly_spaced(rows, 10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(rows, 10, 10) is rows
    assert evenly_spaced(rows, 10, None) is rows
    nested = evenly_spaced((rows, (rows[:, None], None)), 10, 2)
    assert nested[0].tolist() == [0, 5]
    assert nested[1][0].tolist() == [[0], [5]]
    assert nested[1][1] is None


# -- when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["found", "named"])
def test_one_update_per_step(optimizer: str) -> None:
    estimator = make_lifter()
    own = adam(estimator)
    hook = make_hook(estimator, own) if optimizer == "named" else make_hook(estimator)
    train(hook, estimator, own, stream(3))
    assert hook.diagnostics().updates == 3


def test_one_update_per_accumulated_step() -> None:
    assert run_host(Host(accumulation=3), {}, stream(6))[1] == 2


def test_no_update_in_a_skipped_step() -> None:
    assert run_host(Host(overflows=(1, 2)), {}, stream(4))[1] == 2


def test_steps_that_the_device_skips_are_not_the_hooks_fault() -> None:
    estimator = make_lifter()
    optimizer = OPTIMIZERS["adam fused"](estimator.parameters())
    hook = make_hook(estimator)
    for batch in stream(3):
        inputs_2d, inputs_3d = augmented(hook, batch)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        optimizer.found_inf = torch.ones(())  # as GradScaler leaves it
        optimizer.step()
    assert hook.diagnostics().skipped_steps == 0


def test_no_network_learns_in_a_step_that_the_device_skips() -> None:
    # With a fused optimizer GradScaler calls step() and lets the kernel drop it.
    estimator = make_lifter()
    optimizer = OPTIMIZERS["adam fused"](estimator.parameters())
    scaler = torch.amp.GradScaler("cpu")
    hook = make_hook(estimator)
    with recorded_steps(hook, estimator) as order:
        for overflows in (True, False):
            inputs_2d, inputs_3d = augmented(hook, make_batch())
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
    hook = make_hook(estimator, preset=Paper(**PUBLISHED), total_updates=20)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
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
    batch = make_batch()
    augmented(hook, batch)
    mpjpe(other(batch.inputs_2d), batch.inputs_3d).backward()
    optimizer.step()
    assert hook.diagnostics().updates == 0


def test_of_two_optimizers_the_named_one_counts() -> None:
    estimator = make_lifter()
    first, second = (torch.optim.SGD(estimator[i].parameters(), lr=0.1) for i in (1, 5))
    hook = make_hook(estimator, second)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
    mpjpe(estimator(inputs_2d), inputs_3d).backward()
    first.step()
    assert hook.diagnostics().updates == 0
    second.step()
    assert hook.diagnostics().updates == 1


def test_step_by_hand_and_then_the_optimizer_train_once() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    inputs_2d, inputs_3d = augmented(hook, make_batch())
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
        inputs_2d, inputs_3d = augmented(hook, make_batch())
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        if by_hand:
            hook.step()
        optimizer.step()
        states.append(frozen_state(hook))
    assert differences(*states) == []


def test_without_auto_step_only_a_call_trains() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, auto_step=False)
    optimizer = adam(estimator)
    train(hook, estimator, optimizer, stream(2))
    assert hook.diagnostics().updates == 0
    estimator(augmented(hook, make_batch()).inputs_2d)
    hook.step()
    assert hook.diagnostics().updates == 1


def test_what_a_closure_augments_is_learned_from_before_the_next_step() -> None:
    # Lightning's loop: the whole pass happens inside the optimizer's step.
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)
    for done, batch in enumerate(stream(3), start=1):

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            inputs_2d, inputs_3d = augmented(hook, batch)
            loss = mpjpe(estimator(inputs_2d), inputs_3d)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert hook.diagnostics().updates == done


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_update_per_step_whose_closure_augments_the_last_batch(
    accumulation: int, by_hand: bool
) -> None:
    # Lightning's accumulation: the last of so many batches passes inside the step, the others not;
    # by hand as in its on_before_optimizer_step.
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)

    def one_pass(batch: Batch, is_last: bool) -> Tensor:
        inputs_2d, inputs_3d = augmented(hook, batch)
        loss = mpjpe(estimator(inputs_2d), inputs_3d)
        loss.backward()
        if is_last and by_hand:
            hook.step()
        return loss

    for steps in range(1, 11):
        for _ in range(accumulation - 1):
            one_pass(make_batch(), False)
        optimizer.step(lambda: one_pass(make_batch(), True))
        assert hook.diagnostics().updates == steps


def test_a_step_that_fails_does_not_cost_the_next_one_its_update() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator)

    def closure(fails: bool = False) -> Tensor:
        if fails:
            raise KeyError("on purpose")
        inputs_2d, inputs_3d = augmented(hook, make_batch())
        loss = mpjpe(estimator(inputs_2d), inputs_3d)
        loss.backward()
        return loss

    augmented(hook, make_batch())
    with pytest.raises(KeyError, match="on purpose"):
        optimizer.step(lambda: closure(fails=True))
    optimizer.step(closure)
    assert hook.diagnostics().updates == 2


def test_step_without_a_batch_does_nothing() -> None:
    hook = make_hook(make_lifter())
    before = frozen_state(hook)
    hook.step()
    assert differences(before, hook.state_dict()) == []


def test_step_before_there_are_networks_does_nothing() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    hook.step()
    assert hook.state_dict()["training"] is None


def test_augmenting_twice_without_a_step() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    augmented(hook, make_batch(seed=1))
    train(hook, estimator, adam(estimator), [make_batch()])
    assert hook.diagnostics().updates == 1


# -- what cannot be attached to --------------------------------------------------------------------


class FullyShardedDataParallel(nn.Sequential):
    """Called as torch's."""


@pytest.mark.parametrize("wrap", [lambda x: x, nn.Sequential])
def test_sharded_estimators_are_refused(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(PoseAugError, match=r"FSDP shards .*use DistributedDataParallel"):
        make_hook(wrap(FullyShardedDataParallel(make_lifter())))


def test_an_estimator_that_is_sharded_after_the_hook_was_made_is_refused() -> None:
    estimator = nn.Sequential(make_lifter())
    hook = make_hook(estimator)
    estimator[0] = FullyShardedDataParallel(estimator[0])
    with pytest.raises(PoseAugError, match=r"FSDP shards .*use DistributedDataParallel"):
        augmented(hook, make_batch())


@pytest.mark.filterwarnings("ignore:FSDP", "ignore:.*FSDP1 is deprecated")
@pytest.mark.parametrize("version", [1, 2])
def test_torchs_own_sharding_after_the_hook_was_made_is_refused(
    version: int, tmp_path: Path
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        estimator = make_lifter()
        hook = make_hook(estimator)
        if version == 1:
            sharded = torch.distributed.fsdp.FullyShardedDataParallel(
                estimator, device_id=torch.device("cpu")
            )
            assert sharded is not estimator
        else:
            from torch.distributed.device_mesh import init_device_mesh

            shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
            shard(estimator, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(PoseAugError, match=r"FSDP shards .*use DistributedDataParallel"):
            augmented(hook, make_batch())
    finally:
        torch.distributed.destroy_process_group()


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
