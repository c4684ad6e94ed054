"""The host is untouched: with what the hook makes ignored, every bit of it is as without a hook."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import h36m_intrinsics
from loops import (
    ASKING,
    HOOKS,
    OPTIMIZERS,
    PUBLISHED,
    UPDATES,
    Batch,
    Host,
    Trace,
    adam,
    augmented,
    differences,
    frozen_state,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    run_host,
    stream,
    train,
    train_in_two_processes,
)
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, PoseSource
from poseaug_plugin.body.bones import skeleton_tables
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.reference.recipes import Paper, Released

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


@pytest.mark.parametrize("update", UPDATES)
def test_host_is_untouched_by_other_updates(update: str) -> None:
    trace, updates = run_host(Host(), UPDATES[update], host_batches(Host()))
    assert updates > 0
    assert differences(without_hook(Host()), trace) == []


@pytest.mark.parametrize("hook", ["default", "paper", "released"])
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


@pytest.mark.parametrize("skeleton", ["h36m_16", None])
def test_building_draws_nothing_from_the_global_streams(skeleton: str | None) -> None:
    estimator = make_lifter()
    before = copy.deepcopy(leavings(estimator))
    make_hook(estimator, skeleton=skeleton)
    assert differences(before, leavings(estimator)) == []


@pytest.mark.filterwarnings("ignore:.*took skeleton")
def test_networks_made_with_the_first_batch_draw_nothing_from_the_global_streams() -> None:
    estimator = make_lifter()
    before = copy.deepcopy(leavings(estimator))
    augmented(make_hook(estimator, skeleton=None), make_batch())
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
    train(make_hook(estimator), estimator, adam(estimator), stream(1))
    assert [name for name, _ in getattr(estimator, kind)()] == names


def test_state_dict_loads_where_there_is_no_hook() -> None:
    estimator = make_lifter()
    train(make_hook(estimator), estimator, adam(estimator), stream(1))
    other = make_lifter(seed=1)
    other.load_state_dict(estimator.state_dict())
    assert differences(dict(other.state_dict()), dict(estimator.state_dict())) == []


@pytest.mark.parametrize("hook", ["default", *ASKING])
def test_state_dict_of_a_wrapped_estimator_keeps_its_keys(hook: str) -> None:
    estimator = nn.DataParallel(make_lifter())
    keys = list(estimator.state_dict())
    attached = make_hook(estimator, **HOOKS[hook])
    train(attached, estimator, adam(estimator), stream(1))
    assert list(estimator.state_dict()) == keys


def test_optimizer_has_no_foreign_parameters() -> None:
    estimator = make_lifter()
    optimizer = adam(estimator)
    hook = make_hook(estimator, optimizer)
    train(hook, estimator, optimizer, stream(1))
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
        for batch in stream(3):
            for hook, estimator, optimizer in zip(hooks, estimators, optimizers, strict=True):
                train(hook, estimator, optimizer, [batch])
        return tuple(hook and frozen_state(hook) for hook in hooks)

    first_alone, second_alone = run(True, False)[0], run(False, True)[1]
    assert differences((first_alone, second_alone), run(True, True)) == []


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    meeting_point = str(tmp_path / "meeting")
    torch.multiprocessing.spawn(train_in_two_processes, args=(meeting_point,), nprocs=2)


def forward_calls(hook: str, updates: int = 2) -> int:
    estimator = make_lifter()
    attached = make_hook(estimator, **HOOKS[hook])
    calls = []
    estimator.register_forward_hook(lambda *_: calls.append(1))
    train(attached, estimator, adam(estimator), stream(updates))
    return len(calls)


NOT_ASKING = [name for name in HOOKS if name not in (*ASKING, "closed loop")]


@pytest.mark.parametrize("hook", NOT_ASKING)
def test_hook_never_calls_the_estimator(hook: str) -> None:
    assert forward_calls(hook) == 2


@pytest.mark.parametrize("hook", [*ASKING, "closed loop"])
def test_presets_that_ask_the_estimator_do_call_it(hook: str) -> None:
    assert forward_calls(hook, updates=4) > 4


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
    train(attached, estimator, adam(estimator), stream(2))
    assert seeded == []


# -- precision and default device ------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_works_in_full_precision_under_autocast(hook: str) -> None:
    states = []
    for lowers in (False, True):
        estimator = make_lifter(dropout=0.0)
        attached = make_hook(estimator, **HOOKS[hook])
        for batch in stream(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=lowers):
                outputs = augmented(attached, batch)
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
            for camera, *poses in stream(2):
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
        skeleton_tables.cache_clear()
        with default_device(device):
            source = PoseSource(sequences, cameras)
            attached = make_hook(estimator, source=source, **HOOKS[hook])
            for camera, inputs_3d, inputs_2d in data:
                outputs = attached.augment(inputs_2d, inputs_3d, camera.numpy(), return_camera=True)
                optimizer.zero_grad()
                (estimator(outputs[0]) - outputs[1]).square().mean().backward()
                optimizer.step()
            skeleton_tables.cache_clear()
            assert attached.check_batch(*outputs)
            assert torch.empty(0).device.type == device
        assert attached.diagnostics().updates == 2
        states.append((copy.deepcopy(outputs), frozen_state(attached)))
    assert differences(*states) == []


@pytest.mark.parametrize("preset", [Paper, Released])
@pytest.mark.parametrize("default_device", WAYS_TO_SET_A_DEVICE)
def test_estimator_is_asked_under_the_hosts_own_defaults(
    default_device: Any, preset: Callable[..., Any]
) -> None:
    found = []

    class Lifter(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            found.append((torch.empty(0).device.type, torch.get_default_dtype()))
            return super().forward(inputs.flatten(1)).reshape(-1, 1, 16, 3)

    estimator = Lifter(32, 48)
    hook = make_hook(estimator, preset=preset(**PUBLISHED), total_updates=20)
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
    train(hook, estimator, adam(estimator), stream(2))
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert any(not torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))
