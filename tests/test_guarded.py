"""The hook's Adam is Adam: what it leaves out, and what it must not read wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import human_poses
from loops import make_hook, make_lifter, stream, train
from torch import Tensor, nn

from poseaug_plugin import (
    H36M_16,
    HardnessPredictor,
    PartKCSDiscriminator,
    RegressorPolicy,
)
from poseaug_plugin.discriminators import KeypointDiscriminator, MotionDiscriminator
from poseaug_plugin.grouped import GroupedLinear
from poseaug_plugin.guarded import GuardedAdam

POSES = human_poses(6, 1, H36M_16, torch.Generator().manual_seed(0)).double()[:, 0]


def ramp(*shape: int) -> Tensor:
    """Numbers from -1 to 1."""
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


def regressed(policy: RegressorPolicy) -> Tensor:
    """All outputs of a policy's networks, side by side."""
    raw = policy.network(POSES, ramp(6, policy.network.noise_size))
    return torch.cat([x.flatten(1) for x in raw], 1)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "grouped": (lambda: GroupedLinear(4, 12, 7), lambda net: net(ramp(5, 4, 12))),
    "3D critic": (lambda: PartKCSDiscriminator(H36M_16, width=8), lambda net: net(POSES)),
    "2D critic": (
        lambda: KeypointDiscriminator(H36M_16, width=8),
        lambda net: net(ramp(6, 16, 2)),
    ),
    "motion critic": (
        lambda: MotionDiscriminator(H36M_16, width=8),
        lambda net: net(ramp(6, net.layer_1.in_features)),
    ),
    "predictor": (
        lambda: HardnessPredictor(H36M_16, width=8),
        lambda net: net(ramp(6, 3, 16, 2), POSES),
    ),
    "regressors": (lambda: RegressorPolicy(H36M_16, width=8), regressed),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_adams(name: str) -> None:
    """Against torch's unfused Adam, which reads gradients by their indices."""
    make, run = NETWORKS[name]
    torch.manual_seed(0)
    own = make().double()  # a gradient that is nothing but rounding moves nothing then
    for parameter in own.parameters():
        parameter.data.normal_()  # not the zeros that some layers start with
    plain = deepcopy(own)
    guarded = GuardedAdam(own, 1e-2, 1.0)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, foreach=False)
    for _ in range(3):
        left_out = guarded.step(
            guarded.gradients((run(own) - 3).square().mean()), torch.tensor(True)
        )
        assert not left_out
        adam.zero_grad()
        (run(plain) - 3).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adam.step()
    for (where, a), b in zip(own.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8), where


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_may_be_laid_out_in_any_way(device: str) -> None:
    network = nn.Linear(3, 4, device=device)
    copied = deepcopy(network)
    gradient = torch.arange(12.0, device=device).reshape(3, 4)
    bias = torch.ones(2, device=device).repeat_interleave(4)[::2]
    steps = GuardedAdam(network, 0.1, 1.0), GuardedAdam(copied, 0.1, 1.0)
    usable = torch.tensor(True, device=device)
    steps[0].step([gradient.T, bias], usable)
    steps[1].step([gradient.T.contiguous(), bias.contiguous()], usable)
    assert torch.equal(network.weight, copied.weight)
    assert torch.equal(network.bias, copied.bias)


def test_gradients_of_grouped_layers_are_not_laid_out_as_their_weights() -> None:
    """Or else nothing above would have seen that they are read wrongly."""
    layer = GroupedLinear(4, 12, 7)
    gradient = torch.autograd.grad(layer(torch.ones(5, 4, 12)).square().sum(), layer.weight)[0]
    assert gradient.stride() != layer.weight.stride()


@pytest.mark.parametrize("from_recordable", [False, True])
@pytest.mark.parametrize("to_recordable", [False, True])
def test_states_are_the_same_whether_recordable_or_not(
    from_recordable: bool, to_recordable: bool
) -> None:
    network = nn.Linear(3, 4)
    first = GuardedAdam(network, 0.1, 1.0, recordable=from_recordable)
    first.set_learning_rate(1e-4)
    first.step([torch.ones(4, 3), torch.ones(4)], torch.tensor(True))
    state = first.state_dict()
    (group,) = state["param_groups"]
    assert group["lr"] == 1e-4
    assert group["capturable"] is False
    other = GuardedAdam(deepcopy(network), 0.1, 1.0, recordable=to_recordable)
    assert other.problems_with(state) == []
    other.load_state_dict(state)
    assert other.state_dict()["param_groups"] == state["param_groups"]
    assert other.adam.param_groups[0]["capturable"] is to_recordable
    assert float(other.adam.param_groups[0]["lr"]) == pytest.approx(1e-4, rel=1e-6)
    for adam in (first, other):
        adam.step([torch.ones(4, 3), torch.ones(4)], torch.tensor(True))
    for a, b in zip(first.parameters, other.parameters, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_a_rate_that_is_no_number_is_refused_before_loading() -> None:
    adam = GuardedAdam(nn.Linear(3, 4), 0.1, 1.0)
    state = adam.state_dict()
    state["param_groups"][0]["lr"] = "fast"
    assert adam.problems_with(state) == ["not the state of an Adam optimizer"]


def test_moments_that_are_none_are_refused_before_loading() -> None:
    adam = GuardedAdam(nn.Linear(3, 4), 0.1, 1.0)
    state = adam.state_dict() | {"state": {0: 1.0}}
    assert adam.problems_with(state) == ["not the state of an Adam optimizer"]


def test_one_gradient_for_two_parameters_is_clipped_once() -> None:
    network = nn.Module()
    network.a, network.b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    adam = GuardedAdam(network, 0.1, 1.0)
    first, second = adam.gradients((100 * (network.a + network.b)).sum())
    assert first is not second
    taken: list[Tensor] = []
    adam.adam.register_step_pre_hook(lambda *_: taken.extend(p.grad for p in adam.parameters))
    adam.step([first, second], torch.tensor(True))
    assert torch.allclose(torch.cat(taken).norm(), torch.tensor(1.0), atol=1e-4)


def test_a_loaded_hook_steps_at_the_rate_of_its_own_options() -> None:
    """Also where the one that was saved had another, or had it decay."""
    estimator = make_lifter()
    saved = make_hook(estimator, learning_rate=1e-2, decay_learning_rate=True, total_updates=9)
    train(saved, estimator, torch.optim.Adam(estimator.parameters()), stream(3))
    state = saved.state_dict()
    saved.remove()
    hook = make_hook(estimator, learning_rate=1e-3)
    hook.load_state_dict(state)
    train(hook, estimator, torch.optim.Adam(estimator.parameters()), stream(1))
    rates = {
        name: adam["param_groups"][0]["lr"]
        for name, adam in hook.state_dict()["training"]["optimizers"].items()
    }
    assert rates["policy"] == rates["critic_3d"] == rates["critic_2d"] == 1e-3
