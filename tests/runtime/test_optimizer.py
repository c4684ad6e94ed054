"""The hook's Adam is Adam: what it leaves out, and what it must not read wrongly."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers import human_poses
from loops import differences
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from poseaug_plugin.adversary.critics import GroupedLinear, KeypointCritic, PartKCSCritic
from poseaug_plugin.augment.policy import AugmentationPolicy
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.reference.regressors import RegressorPolicy
from poseaug_plugin.runtime.isolation import TorchDefaults
from poseaug_plugin.runtime.optimizer import GuardedAdam

POSES = human_poses(6, 1, H36M_16, torch.Generator().manual_seed(0)).double()[:, 0]


def ramp(*shape: int) -> Tensor:
    """Numbers from -1 to 1."""
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


def regressed(policy: RegressorPolicy) -> Tensor:
    """All outputs of a policy's networks, side by side."""
    raw = policy.network(POSES, ramp(6, policy.network.noise_size))
    return torch.cat([x.flatten(1) for x in raw], 1)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "grouped": (lambda: GroupedLinear(4, 12, 7), lambda net: net(ramp(4, 12, 5))),
    "3D critic": (lambda: PartKCSCritic(H36M_16, width=8), lambda net: net(POSES)),
    "2D critic": (lambda: KeypointCritic(H36M_16, width=8), lambda net: net(ramp(6, 16, 2))),
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
    with TorchDefaults(torch.float64, torch.device("cpu")).used():
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


ORACLES: dict[str, Callable[[], nn.Module]] = {
    "3D critic": lambda: PartKCSCritic(H36M_16),
    "2D critic": lambda: KeypointCritic(H36M_16),
    "policy": lambda: AugmentationPolicy(H36M_16),
    "regressors": lambda: RegressorPolicy(H36M_16, width=32),
}


def random_gradients(network: nn.Module, generator: torch.Generator) -> list[Tensor]:
    """Of any size: some are clipped, some are not, some are zero, some laid out the other way."""
    gradients = []
    for parameter in network.parameters():
        scale = 10.0 ** float(torch.randint(-6, 3, (), generator=generator))
        if float(torch.rand((), generator=generator)) < 0.1:
            scale = 0.0
        shape = parameter.shape[::-1]
        gradient = scale * torch.randn(shape, generator=generator)
        gradients.append(gradient.permute(*range(gradient.dim())[::-1]))
    return gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ORACLES)
def test_steps_are_those_of_torchs_fused_adam_to_the_bit(name: str, device: str) -> None:
    """With clipping and with steps that ``found_inf`` leaves out, as a `GradScaler` does it."""
    torch.manual_seed(0)
    own = ORACLES[name]().to(device)
    other = deepcopy(own)
    guarded = GuardedAdam(own, 1e-3, 0.5)
    capturable = device == "cuda"  # as `GuardedAdam` is
    rate = torch.tensor(1e-3, device=device) if capturable else 1e-3
    adam = torch.optim.Adam(other.parameters(), rate, fused=True, capturable=capturable)
    generator = torch.Generator().manual_seed(1)
    bad = torch.nan, torch.inf, -torch.inf
    left_out_steps = 0
    for i in range(30):
        gradients = [g.to(device) for g in random_gradients(own, generator)]
        allowed, finite = i % 7 != 3, i % 5 != 2
        if not finite:
            gradients[i % len(gradients)].select(0, 0).fill_(bad[i % 3])
        left_out = guarded.step([g.clone() for g in gradients], torch.tensor(allowed).to(device))
        for parameter, gradient in zip(other.parameters(), gradients, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        assert bool(norm.isfinite()) == finite
        adam.found_inf = torch.tensor(float(not (allowed and finite)), device=device)
        adam.step()
        assert bool(left_out) == (allowed and not finite)
        left_out_steps += not (allowed and finite)
        assert differences(own.state_dict(), other.state_dict()) == []
    assert left_out_steps > 5
    states = [adam.state[p] for p in other.parameters()]
    steps = torch.stack([state["step"] for state in states])
    assert torch.equal(guarded.steps, steps)
    assert (steps == 30 - left_out_steps).all()
    for moment, key in ((guarded.first_moment, "exp_avg"), (guarded.second_moment, "exp_avg_sq")):
        expected = torch.cat([state[key].flatten() for state in states])
        assert torch.equal(moment, expected)


def test_a_step_that_is_left_out_changes_nothing() -> None:
    network = PartKCSCritic(H36M_16, width=8)
    adam = GuardedAdam(network)
    ones = [torch.ones_like(p) for p in network.parameters()]
    adam.step(ones, torch.tensor(True))
    before = deepcopy((network.state_dict(), adam.state_dict()))
    assert not adam.step(ones, torch.tensor(False))
    ones[-1].fill_(torch.nan)
    assert not adam.step(ones, torch.tensor(False))
    assert adam.step(ones, torch.tensor(True))
    assert differences(before, (network.state_dict(), adam.state_dict())) == []


def test_the_state_is_copied_into_memory_that_stays() -> None:
    networks = [nn.Linear(3, 4) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    first, other = map(GuardedAdam, networks)
    ones = [torch.ones(4, 3), torch.ones(4)]
    for _ in range(3):
        first.step(ones, torch.tensor(True))
    file = io.BytesIO()
    torch.save((networks[0].state_dict(), first.state_dict()), file)
    file.seek(0)
    weights, moments = torch.load(file, weights_only=True)
    where = [buffer.data_ptr() for buffer in other.buffers()]
    networks[1].load_state_dict(weights)
    other.load_state_dict(moments)
    assert [buffer.data_ptr() for buffer in other.buffers()] == where
    for adam in (first, other):
        adam.step(ones, torch.tensor(True))
    assert differences(networks[0].state_dict(), networks[1].state_dict()) == []
    assert differences(first.state_dict(), other.state_dict()) == []


def test_nobody_sees_the_steps_and_no_gradient_is_left() -> None:
    seen: list[Any] = []
    handles = [
        register(lambda *_: seen.append(True))
        for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
    ]
    network = nn.Linear(3, 4)
    try:
        adam = GuardedAdam(network)
        adam.step(adam.gradients(network(torch.ones(2, 3)).sum()), torch.tensor(True))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == []
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_learning_rate_is_the_one_that_was_set_last() -> None:
    network = nn.Linear(1, 1, bias=False)
    adam, steps = GuardedAdam(network, 0.1), []
    for rate in (None, 0.01, 0.0, 0.1):
        if rate is not None:
            adam.set_learning_rate(rate)
        before = network.weight.detach().clone()
        adam.step([torch.ones(1, 1)], torch.tensor(True))
        steps.append((before - network.weight).item())
    assert steps == pytest.approx([0.1, 0.01, 0.0, 0.1], rel=1e-4)


def test_what_needs_no_gradient_is_left_alone() -> None:
    network = nn.Linear(3, 4)
    network.bias.requires_grad_(False)
    adam = GuardedAdam(network)
    assert len(adam.network_parameters) == 1
    before = network.bias.clone()
    adam.step(adam.gradients(network(torch.ones(2, 3)).sum()), torch.tensor(True))
    assert torch.equal(network.bias, before)


def test_gradients_of_what_a_loss_does_not_depend_on_are_zero() -> None:
    network = nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 3)])
    gradients = GuardedAdam(network).gradients(network[1](torch.ones(1, 3)).sum())
    assert [bool(g.any()) for g in gradients] == [False, False, True, True]
    assert [g.shape for g in gradients] == [p.shape for p in network.parameters()]


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


def test_gradients_of_grouped_layers_are_laid_out_as_their_weights() -> None:
    """Or else every step would copy them."""
    layer = GroupedLinear(4, 12, 7)
    gradient = torch.autograd.grad(layer(torch.ones(4, 12, 5)).square().sum(), layer.weight)[0]
    assert gradient.stride() == layer.weight.stride()


def test_one_gradient_for_two_parameters_is_clipped_once() -> None:
    network = nn.Module()
    network.a, network.b = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    adam = GuardedAdam(network, 0.1, 1.0)
    first, second = adam.gradients((100 * (network.a + network.b)).sum())
    adam.step([first, second], torch.tensor(True))
    taken = adam.first_moment / (1 - 0.9)  # after one step
    assert torch.allclose(taken.norm(), torch.tensor(1.0), atol=1e-4)
