"""On a GPU: recorded work does what unrecorded work does; the user's things stay as they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from loops import (
    ASKING,
    HOOKS,
    UPDATES,
    Batch,
    adam,
    differences,
    frozen_state,
    make_hook,
    make_lifter,
    stream,
    train,
)

from poseaug_plugin import PoseAugHook, PoseSource, RandomPolicy
from poseaug_plugin.runtime.isolation import seeded_stream

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Until the small pools are full and every kind of update was seen often enough to be recorded.
ENOUGH = 28

CASES: dict[str, dict[str, Any]] = {
    "replace": {},
    **UPDATES,
    "without feedback": HOOKS["without feedback"],
    "without critics": HOOKS["without critics"],
    "random": HOOKS["random"],
    "released": HOOKS["released"],
    "paper": HOOKS["paper"],
}


def on_gpu(batches: list[Batch]) -> list[Batch]:
    return [Batch(*(t.cuda() for t in batch)) for batch in batches]


def trained(
    count: int, frames: int = 1, **options: Any
) -> tuple[PoseAugHook, torch.nn.Module, torch.optim.Optimizer]:
    # Without batch normalisation: the gradient of a bias before it is nothing but rounding, which
    # Adam makes full steps of.
    estimator = make_lifter(frames=frames, dropout=0.0, batch_norm=False).cuda()
    optimizer = adam(estimator)
    hook = make_hook(estimator, **options)
    train(hook, estimator, optimizer, on_gpu(stream(count, frames=frames)))
    return hook, estimator, optimizer


def recordings(hook: PoseAugHook) -> list[str]:
    return sorted(kind[0] for kind in hook._trainer.recorder._recordings)  # type: ignore


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Size of the difference as a share of the whole."""
    return float(((first - second).norm() / first.norm().clamp(min=1e-6)).detach())


def close(first: Any, second: Any) -> bool:
    """Whether two states of training agree but for rounding, and what Adam makes of its sign."""
    first, second = (dict(s["training"]["modules"]) for s in (first, second))
    tensors = [k for k, v in first.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return bool(tensors) and all(apart(first[k], second[k]) < 1e-2 for k in tensors)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_recorded_steps_do_what_written_ones_do(case: str, frames: int) -> None:
    written, first, _ = trained(ENOUGH, frames, **CASES[case], cuda_graphs=False)
    recorded, second, _ = trained(ENOUGH, frames, **CASES[case])
    assert recordings(written) == []
    learning = set() if case in ASKING else {"_learn", "_apply"}
    assert {"augment"} | learning <= set(recordings(recorded))
    assert close(frozen_state(written), frozen_state(recorded))
    assert all(
        apart(a, b) < 1e-2 for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert written.diagnostics().updates == recorded.diagnostics().updates == ENOUGH
    assert recorded.diagnostics().skipped_steps == 0
    first_losses, second_losses = written.losses, recorded.losses
    assert list(first_losses) == list(second_losses)
    for name, loss in first_losses.items():
        assert torch.allclose(loss, second_losses[name], 1e-3, 1e-3), name


def test_recorded_steps_draw_new_poses_each_time() -> None:
    hook, *_ = trained(ENOUGH)
    camera, inputs_3d, inputs_2d = on_gpu(stream(1))[0]
    first, second = (hook.augment(inputs_2d, inputs_3d, camera) for _ in range(2))
    assert not torch.equal(first.inputs_3d, second.inputs_3d)


def test_batches_that_were_returned_are_the_users() -> None:
    hook, *_ = trained(ENOUGH)
    camera, inputs_3d, inputs_2d = on_gpu(stream(1))[0]
    first = hook.augment(inputs_2d, inputs_3d, camera)
    before = deepcopy(first)
    hook.augment(inputs_2d, inputs_3d, camera)
    assert differences(tuple(before), tuple(first)) == []


def test_losses_that_were_read_do_not_change() -> None:
    hook, estimator, optimizer = trained(ENOUGH)
    losses = hook.losses
    before = deepcopy(losses)
    train(hook, estimator, optimizer, on_gpu(stream(2, seed=1)))
    assert differences(before, losses) == []
    assert differences(before, hook.losses) != []


def test_other_batch_sizes_go_on_beside_the_recorded_one() -> None:
    hook, estimator, optimizer = trained(ENOUGH)
    known = recordings(hook)
    train(hook, estimator, optimizer, on_gpu(stream(1, size=9)))
    train(hook, estimator, optimizer, on_gpu(stream(2)))
    assert recordings(hook) == known
    assert hook.diagnostics().updates == ENOUGH + 3


def test_recorded_training_goes_on_from_a_checkpoint() -> None:
    batches = on_gpu(stream(20, seed=2))
    states = []
    for interrupted in (False, True):
        hook, estimator, optimizer = trained(ENOUGH)
        train(hook, estimator, optimizer, batches[:8])
        if interrupted:
            saved = frozen_state(hook)
            hook.remove()
            hook = make_hook(estimator)
            train(hook, estimator, optimizer, [])
            hook.load_state_dict(saved)
        train(hook, estimator, optimizer, batches[8:])
        states.append(frozen_state(hook))
    assert close(*states)
    make_hook(make_lifter().cuda(), cuda_graphs=False).load_state_dict(states[0])


def test_loading_into_a_hook_that_has_recorded() -> None:
    hook, estimator, optimizer = trained(ENOUGH)
    saved, weights = frozen_state(hook), deepcopy(estimator.state_dict())
    moments = deepcopy(optimizer.state_dict())
    batches = on_gpu(stream(8, seed=3))
    states = []
    for _ in range(2):
        hook.load_state_dict(saved)
        estimator.load_state_dict(weights)
        optimizer.load_state_dict(deepcopy(moments))
        train(hook, estimator, optimizer, batches)
        states.append(frozen_state(hook))
    assert close(*states)


def test_step_that_the_scaler_undoes_teaches_nothing() -> None:
    hook, estimator, _ = trained(ENOUGH)
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3, fused=True)
    for overflows in (*[False] * 9, True, True, False):
        scaler = torch.amp.GradScaler("cuda", init_scale=1.0)
        optimizer.zero_grad()
        camera, inputs_3d, inputs_2d = on_gpu(stream(1))[0]
        before = frozen_state(hook)["training"]["modules"]
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        loss = (estimator(inputs_2d) - inputs_3d).norm(dim=-1).mean()
        scaler.scale(loss * (torch.inf if overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        after = hook.state_dict()["training"]["modules"]
        changed = {k.split(".")[0] for k in differences(before, after)}
        assert ("/policy" in changed) != overflows
        assert ("/controller" in changed) != overflows


def test_users_random_streams_are_given_back() -> None:
    hook, estimator, _ = trained(ENOUGH)
    torch.manual_seed(5)
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    camera, inputs_3d, inputs_2d = on_gpu(stream(1))[0]
    estimator(hook.augment(inputs_2d, inputs_3d, camera).inputs_2d)
    hook.step()
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], torch.cuda.get_rng_state())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_recorded_steps_never_wait_for_the_gpu() -> None:
    hook, estimator, optimizer = trained(ENOUGH)
    batches = on_gpu(stream(4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(hook, estimator, optimizer, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert hook.diagnostics().updates == ENOUGH + 4


def test_windows_from_a_source_are_recorded() -> None:
    batch = stream(1, frames=9)[0]
    source = PoseSource([poses.numpy() for poses in batch.inputs_3d], batch.camera.numpy())
    hook, *_ = trained(ENOUGH, 3, source=source)
    assert "augment" in recordings(hook)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["default", *ASKING])
def test_random_streams_of_the_gpu_are_given_back(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3, device="cuda")
    torch.manual_seed(3)
    estimator = make_lifter(dropout=0.0).cuda()
    torch.manual_seed(3)
    hook = make_hook(estimator, **HOOKS[name])
    camera, inputs_3d, inputs_2d = on_gpu(stream(1))[0]
    estimator(hook.augment(inputs_2d, inputs_3d, camera).inputs_2d)
    hook.step()
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_a_seeded_stream_seeds_the_gpu_and_gives_it_back() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    drawn = []
    torch.manual_seed(1)
    for _ in range(2):
        before = torch.cuda.get_rng_state()
        with seeded_stream(7, device):
            drawn.append(torch.rand(2, device=device))
        assert torch.equal(before, torch.cuda.get_rng_state())
    assert torch.equal(*drawn)


def test_policies_of_ones_own_are_not_recorded() -> None:
    class Waiting(RandomPolicy):
        def forward(self, joints: torch.Tensor, noise: torch.Tensor) -> Any:
            assert joints.isfinite().all().item()
            return super().forward(joints, noise)

    hook, *_ = trained(ENOUGH, policy=Waiting("h36m_16"))
    assert recordings(hook) == []
    assert hook.diagnostics().updates == ENOUGH


def test_nothing_is_recorded_where_autograd_looks_at_gradients() -> None:
    with torch.autograd.set_detect_anomaly(True):
        hook, *_ = trained(ENOUGH)
    assert recordings(hook) == []


@pytest.mark.filterwarnings("ignore")
def test_compiled_estimator_and_hook() -> None:
    """A user's own `torch.compile` with CUDA graphs of its own beside the hook's."""
    torch._dynamo.reset()
    lifter = make_lifter(dropout=0.0).cuda()
    estimator = torch.compile(lifter, mode="reduce-overhead")
    optimizer = adam(lifter)
    hook = make_hook(estimator)
    train(hook, estimator, optimizer, on_gpu(stream(ENOUGH)))
    assert "_learn" in recordings(hook)
    assert all(loss.isfinite() for loss in hook.losses.values())
    assert all(p.isfinite().all() for p in lifter.parameters())
