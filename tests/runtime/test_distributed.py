"""Two processes: what is learned is the same in both, and what it would be in one."""

from __future__ import annotations

import warnings
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import loops
import pytest
import torch
from loops import (
    HOOKS,
    SmallDefault,
    augmented,
    differences,
    frozen_state,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    without_trajectory,
)
from torch import Tensor, nn

from poseaug_plugin import KeypointCritic, PoseAugError, PoseAugHook, PoseAugWarning
from poseaug_plugin.adversary.critics import lsgan_critic_loss
from poseaug_plugin.body.bones import root_relative
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.feedback.controller import FeedbackController, observed_errors
from poseaug_plugin.runtime import distributed as runtime_distributed
from poseaug_plugin.runtime.distributed import Ranks, WeightedGradients

NETWORKS = ("policy", "critic_3d", "critic_2d", "controller")

CASES = [
    (name, kind)
    for name in ("default", "without critics", "released", "paper", "random", "closed loop")
    for kind in ("even", "uneven", "broken")
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes under gloo came to, in all cases; starting them takes longest."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(loops.__file__).parent}")
        torch.multiprocessing.spawn(_work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        made: dict[Any, Any] = {case: trained(rank, HOOKS[case[0]], case[1]) for case in CASES}
        made |= {"averaged": averaged_gradients(rank), "refused": refused()}
        made |= {"stepped": stepped_often(rank), "unwrapped": warned_of_inner_module()}
        made |= {"controlled": controlled(rank), "seeded": fresh_state(seed=3 + rank)}
        made |= {"failed": failed(rank), "stayed away": stayed_away(rank)}
        torch.save(made, Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


# -- averaging -------------------------------------------------------------------------------------


def critic_gradients(rows: slice) -> WeightedGradients:
    torch.manual_seed(0)
    critic = KeypointCritic("h36m_16", width=16)
    keypoints = make_batch(24).inputs_2d[rows, 0]
    scores = critic(torch.cat([keypoints, 0.5 * keypoints]))
    weights = torch.ones(len(keypoints))
    loss = lsgan_critic_loss(*scores.chunk(2), weights)
    return WeightedGradients(
        list(torch.autograd.grad(loss, list(critic.parameters()))), weights.sum()
    )


def averaged_gradients(rank: int) -> Any:
    ranks = Ranks(torch.distributed.group.WORLD)
    learned = critic_gradients(slice(0, 8) if rank == 0 else slice(8, None))
    silent = WeightedGradients([torch.full((3,), torch.nan)], torch.tensor(0.0))
    speaks = WeightedGradients([torch.full((3,), 2.0)], torch.tensor(4.0))
    broken = WeightedGradients([torch.full((3,), torch.nan if rank else 1.0)], torch.tensor(1.0))
    buffer = torch.tensor([1.0 + 2 * rank])
    parts = [learned, speaks if rank else silent, silent, broken]
    made = ranks.average(parts, [buffer])
    return [tuple(x) for x in made], buffer


def test_average_is_that_of_the_joint_batch(ranks: list[dict[str, Any]]) -> None:
    first, second = (made["averaged"] for made in ranks)
    assert differences([x for x, _ in first[0]][:3], [x for x, _ in second[0]][:3]) == []
    parts, buffer = first
    joint = critic_gradients(slice(None))
    for ours, expected in zip(parts[0][0], joint.gradients, strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    assert parts[0][1] == 24
    assert parts[1][0][0].tolist() == [2.0] * 3  # a rank with nothing to say does not dilute
    assert parts[2][1] == 0
    assert parts[3][0][0].isnan().all()  # on every rank
    assert buffer.item() == pytest.approx((8 * 1.0 + 16 * 3.0) / 24)


# -- training --------------------------------------------------------------------------------------


def distributed(estimator: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(estimator)


def trained(rank: int, options: dict[str, Any], kind: str) -> Any:
    """Some steps of a DDP training, each rank on its own data; the last batch is uneven."""
    estimator = distributed(make_lifter(frames=3))
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
        if hook._pending.batch is not None:
            noise.append(hook._pending.batch.sources)
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
        if k.split(".")[0].removesuffix("_optimizer") in NETWORKS
        and isinstance(v, Tensor)
        and v.is_floating_point()
    }


@pytest.mark.parametrize("kind", ["even", "uneven", "broken"])
def test_ranks_believe_the_same_of_the_target(kind: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (made["closed loop", kind][0]["training"]["modules"] for made in ranks)
    for name in ("ratios", "size", "asked"):
        assert torch.equal(first[f"closed_loop.{name}"], second[f"closed_loop.{name}"])
    assert first["closed_loop.asked"] > 0
    assert (first["closed_loop.ratios"] != 1).all()
    assert not torch.equal(first["closed_loop.poses"], second["closed_loop.poses"])


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


def fresh_state(seed: int) -> dict[str, Any]:
    return frozen_state(make_hook(distributed(make_lifter()), seed=seed))


def test_ranks_start_alike_whatever_their_seeds(ranks: list[dict[str, Any]]) -> None:
    first, second = (made["seeded"] for made in ranks)
    assert differences(learned(first), learned(second)) == []
    streams = [state["training"]["generator"] for state in (first, second)]
    assert not torch.equal(*streams)  # they draw differently


def controlled(rank: int) -> Any:
    """A controller that observes other errors, of other numbers of samples, on every rank."""
    hook = make_hook(distributed(make_lifter()), share=0.5)
    figures = []
    for i, batch in enumerate(stream(4, seed=1 + rank, size=16 + 8 * rank)):
        outputs = augmented(hook, batch)
        truth = root_relative(without_trajectory(outputs.inputs_3d), H36M_16)
        answer = truth + (1 + rank) * torch.linspace(-0.1, 0.1, 16)[:, None]
        if i == 2 and rank == 1:  # nothing was seen here
            figures.append((0.0, 0.0, 0.0, 0.0))
        else:
            hook.observe(answer)
            errors = observed_errors(answer, hook._pending.batch, H36M_16)
            figures.append(tuple(x.item() for x in errors))
        hook.step()
    state = hook.state_dict()["training"]["modules"]
    return {k: v.clone() for k, v in state.items() if k.startswith("controller.")}, figures


def test_controllers_of_two_processes_are_one(ranks: list[dict[str, Any]]) -> None:
    (first, figures), (second, others) = (made["controlled"] for made in ranks)
    assert differences(first, second) == []
    hook = make_hook(make_lifter())
    expected: FeedbackController = hook._trainer.controller
    for mine, theirs in zip(figures, others, strict=True):
        total = mine[3] + theirs[3]
        averages = [
            (a * mine[3] + b * theirs[3]) / total for a, b in zip(mine, theirs, strict=True)
        ]
        expected.move(torch.tensor(averages[:3]), torch.tensor(True))
    assert expected.ratio > 0
    assert first["controller.ratio"].item() == pytest.approx(expected.ratio.item(), rel=1e-5)
    assert first["controller.strength"] == expected.strength


def refused() -> str:
    estimator = distributed(make_lifter())
    try:
        make_hook(estimator, skeleton=None)
    except PoseAugError as error:
        return str(error)
    return ""


def stepped_often(rank: int) -> Any:
    """Two optimizers, and `step` called by hand as well: four batches are four updates."""
    estimator = distributed(make_lifter(frames=3))
    hook = make_hook(estimator, preset=SmallDefault(interval=2))
    first, *rest = estimator.parameters()
    optimizers = [torch.optim.Adam([first]), torch.optim.Adam(rest)]
    fresh = [p.detach().clone() for p in hook.policy.parameters()]
    for i, (camera, inputs_3d, inputs_2d) in enumerate(stream(4, seed=1 + rank, frames=3)):
        if i == 2 and rank == 1:  # too small to augment; takes part in the update all the same
            camera, inputs_3d, inputs_2d = camera[:1], inputs_3d[:1], inputs_2d[:1]
            estimator.eval()  # BatchNorm takes no batch of one
        inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        for _ in range(2):
            hook.step()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    learned = differences(fresh, [p.detach() for p in hook.policy.parameters()])
    return hook.diagnostics().updates, bool(learned)


def failed(rank: int) -> Any:
    """An update that fails on one rank, which catches the error and goes on."""
    estimator = distributed(make_lifter())
    hook = make_hook(estimator, preset=SmallDefault(critic_interval=1))
    optimizer = torch.optim.Adam(estimator.parameters())
    errors = []
    for i, batch in enumerate(stream(4, seed=1 + rank)):
        inputs_2d, inputs_3d = augmented(hook, batch)
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        critic = hook._trainer.phases[1].network
        if i == 1 and rank == 1:
            critic.forward = lambda *_: [][0]
        try:
            optimizer.step()
        except RuntimeError as error:
            errors.append(str(error))
            with hook.paused():
                optimizer.step()
        critic.__dict__.pop("forward", None)
        optimizer.zero_grad()
    state = frozen_state(hook)
    return learned(state), errors, hook.diagnostics().updates, deepcopy(estimator.state_dict())


def test_a_rank_whose_update_fails_does_not_keep_the_others_waiting(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (made["failed"] for made in ranks)
    assert first[1] == []
    assert len(second[1]) == 1
    assert "PoseAugHook.step failed (IndexError" in second[1][0]
    assert first[2] == second[2] == 4
    assert differences(first[0], second[0]) == []
    weights = [{k: v for k, v in x[3].items() if "weight" in k} for x in (first, second)]
    assert differences(*weights) == []


def stayed_away(rank: int) -> Any:
    """One rank leaves a batch out: the other is told, and the estimator's gradients are its own."""
    runtime_distributed._TIMEOUT = timedelta(seconds=2)
    estimator = distributed(make_lifter(dropout=0.0))
    hook = make_hook(estimator)
    optimizer = torch.optim.SGD(estimator.parameters(), 0.1)
    errors = []
    for i, batch in enumerate(stream(3, seed=1 + rank)):
        inputs_2d, inputs_3d = batch.inputs_2d, batch.inputs_3d
        if rank == 0 or i == 0:
            hook.augment(inputs_2d, inputs_3d, batch.camera)
        optimizer.zero_grad()
        mpjpe(estimator(inputs_2d), inputs_3d).backward()
        try:
            optimizer.step()
        except RuntimeError as error:
            errors.append(str(error))
            hook.enabled = False
            optimizer.step()
    return errors, deepcopy(estimator.state_dict())


def test_a_rank_that_stays_away_is_missed_with_words_and_does_no_harm(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (made["stayed away"] for made in ranks)
    assert second[0] == []
    (message,) = first[0]
    assert "another process did not take part in this update" in message
    assert "hook.enabled = False" in message
    weights = [{k: v for k, v in x[1].items() if "weight" in k} for x in (first, second)]
    assert differences(*weights) == []


def warned_of_inner_module() -> list[str]:
    estimator = distributed(make_lifter())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_hook(estimator)
        inner: PoseAugHook = make_hook(estimator.module)
    assert inner.diagnostics().updates == 0
    return [str(one.message) for one in caught if one.category is PoseAugWarning]


def test_one_update_per_batch_whatever_steps(ranks: list[dict[str, Any]]) -> None:
    assert [made["stepped"] for made in ranks] == [(4, True), (4, True)]


def test_hook_on_the_module_inside_warns(ranks: list[dict[str, Any]]) -> None:
    for made in ranks:
        (message,) = made["unwrapped"]
        assert "not in DistributedDataParallel" in message


def test_processes_must_know_the_skeleton(ranks: list[dict[str, Any]]) -> None:
    assert all("pass skeleton='h36m_17'" in made["refused"] for made in ranks)
