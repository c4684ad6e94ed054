"""Two processes: what is learned is the same in both, and what it would be in one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import (
    HOOKS,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
)
from torch import Tensor, nn

from poseaug_plugin import HardnessPredictor, PoseAugError, PoseAugWarning
from poseaug_plugin.objectives import predictor_objective
from poseaug_plugin.ranks import Lesson, Ranks

NETWORKS = ("policy", "critic_3d", "critic_2d", "critic_motion", "predictor")


CASES = [
    (name, kind)
    for name in ("default", "predicted", "released", "random")
    for kind in ("even", "uneven", "broken")
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes under gloo came to, in all cases; starting them takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        torch.multiprocessing.spawn(_work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        made: dict[Any, Any] = {case: trained(rank, HOOKS[case[0]], case[1]) for case in CASES}
        made |= {"averaged": averaged_lessons(rank), "refused": refused()}
        made |= {"stepped": stepped_often(rank), "unwrapped": warned_of_inner_module()}
        torch.save(made, Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


# -- averaging -------------------------------------------------------------------------------------


def batch_for_the_predictor() -> tuple[Tensor, Tensor, Tensor]:
    batch = make_batch(24)
    observed = 0.05 + torch.rand(24, generator=torch.Generator().manual_seed(0))
    return batch.inputs_2d, batch.inputs_3d[:, 0], observed


def predictor_lesson(rows: slice) -> Lesson:
    torch.manual_seed(0)
    predictor = HardnessPredictor("h36m_16", width=16)
    keypoints, joints, observed = (x[rows] for x in batch_for_the_predictor())
    weights = torch.ones(len(observed))
    loss = predictor_objective(predictor(keypoints, joints), observed, weights).loss
    parameters = [p for p in predictor.parameters() if p is not predictor.motion]
    return Lesson(list(torch.autograd.grad(loss, parameters)), weights.sum())


def averaged_lessons(rank: int) -> Any:
    ranks = Ranks(torch.distributed.group.WORLD)
    lesson = predictor_lesson(slice(0, 8) if rank == 0 else slice(8, None))
    silent = Lesson([torch.full((3,), torch.nan)], torch.tensor(0.0))
    speaks = Lesson([torch.full((3,), 2.0)], torch.tensor(4.0))
    broken = Lesson([torch.full((3,), torch.nan if rank else 1.0)], torch.tensor(1.0))
    buffer = torch.tensor([1.0 + 2 * rank])
    lessons = [lesson, speaks if rank else silent, silent, broken]
    made = ranks.average(lessons, [buffer])
    return [tuple(x) for x in made], buffer


def test_average_is_that_of_the_joint_batch(ranks: list[dict[str, Any]]) -> None:
    first, second = (made["averaged"] for made in ranks)
    assert differences([x for x, _ in first[0]][:3], [x for x, _ in second[0]][:3]) == []
    lessons, buffer = first
    joint = predictor_lesson(slice(None))
    for ours, expected in zip(lessons[0][0], joint.gradients, strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    assert lessons[0][1] == 24
    assert lessons[1][0][0].tolist() == [2.0] * 3  # a rank with nothing to say does not dilute
    assert lessons[2][1] == 0
    assert lessons[3][0][0].isnan().all()  # on every rank
    assert buffer.item() == pytest.approx((8 * 1.0 + 16 * 3.0) / 24)


# -- training --------------------------------------------------------------------------------------


def trained(rank: int, options: dict[str, Any], kind: str) -> Any:
    """Some steps of a DDP training, each rank on its own data; the last batch is uneven."""
    estimator = nn.parallel.DistributedDataParallel(make_lifter(frames=3))
    hook = make_hook(estimator, **options)
    optimizer = torch.optim.Adam(estimator.parameters())
    noise = []
    for i, batch in enumerate(stream(5, seed=1 + rank, frames=3)):
        camera, inputs_3d, inputs_2d = batch
        if i == 4 and rank == 1 and kind == "uneven":
            camera, inputs_3d, inputs_2d = camera[:1], inputs_3d[:1], inputs_2d[:1]
            estimator.eval()  # BatchNorm takes no batch of one
        if kind == "broken" and i == 2 and rank == 1:
            inputs_3d = inputs_3d * torch.nan
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        if hook._pending is not None:
            noise.append(hook._pending.augmented.rows)
        target = inputs_3d.nan_to_num()
        target[:, :, 0] = 0
        optimizer.zero_grad()
        mpjpe(estimator(inputs_2d.nan_to_num()), target).backward()
        optimizer.step()
    return frozen_state(hook), noise, hook.diagnostics()


def learned(state: dict[str, Any]) -> dict[str, Tensor]:
    modules = state["training"]["modules"]
    return {
        k: v
        for k, v in modules.items()
        if k.split(".")[0] in NETWORKS and isinstance(v, Tensor) and v.is_floating_point()
    }


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_ranks_learn_the_same(name: str, kind: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (made[name, kind] for made in ranks)
    assert first[2].updates == second[2].updates == 5
    # A rank whose whole batch is broken has nothing to say; the other learns on, and so do both.
    assert first[2].skipped_steps == second[2].skipped_steps == 0
    assert (second[2].unusable_samples > 0) == (kind == "broken")
    assert differences(learned(first[0]), learned(second[0])) == []
    assert any(not torch.equal(a, b) for a, b in zip(first[1], second[1], strict=False))
    fresh = frozen_state(make_hook(make_lifter(frames=3), **HOOKS[name]))
    changed = differences(learned(fresh), learned(first[0]))
    assert bool(changed) == (name != "random")
    # One process goes on from what two have learned.
    hook = make_hook(make_lifter(frames=3), **HOOKS[name])
    hook.load_state_dict(first[0])
    assert differences(hook.state_dict(), first[0]) == []


def refused() -> str:
    estimator = nn.parallel.DistributedDataParallel(make_lifter())
    try:
        make_hook(estimator, skeleton=None)
    except PoseAugError as error:
        return str(error)
    return ""


def stepped_often(rank: int) -> Any:
    """Two optimizers, and `step` called by hand as well: four batches are four updates."""
    estimator = nn.parallel.DistributedDataParallel(make_lifter(frames=3))
    hook = make_hook(estimator, policy_interval=2)
    first, *rest = estimator.parameters()
    optimizers = [torch.optim.Adam([first]), torch.optim.Adam(rest)]
    fresh = [p.detach().clone() for p in hook.policy.parameters()]
    for i, (camera, inputs_3d, inputs_2d) in enumerate(stream(4, seed=1 + rank, frames=3)):
        if i == 2 and rank == 1:  # too small to augment; takes part in the update all the same
            camera, inputs_3d, inputs_2d = camera[:3], inputs_3d[:3], inputs_2d[:3]
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        for _ in range(2):
            hook.step()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    learned = differences(fresh, [p.detach() for p in hook.policy.parameters()])
    return hook.diagnostics().updates, bool(learned)


def warned_of_inner_module() -> list[str]:
    estimator = nn.parallel.DistributedDataParallel(make_lifter())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_hook(estimator)
        make_hook(estimator.module)
    return [str(one.message) for one in caught if one.category is PoseAugWarning]


def test_one_update_per_batch_whatever_steps(ranks: list[dict[str, Any]]) -> None:
    assert [made["stepped"] for made in ranks] == [(4, True), (4, True)]


def test_hook_on_the_module_inside_warns(ranks: list[dict[str, Any]]) -> None:
    for made in ranks:
        (message,) = made["unwrapped"]
        assert "not in DistributedDataParallel" in message


def test_processes_must_know_the_skeleton(ranks: list[dict[str, Any]]) -> None:
    assert all("pass skeleton='h36m_17'" in made["refused"] for made in ranks)
