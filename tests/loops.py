"""Host training loops as people write them, with and without the hook, and what they leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from helpers import h36m_intrinsics, human_poses
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

from poseaug_plugin import HostPoses, PoseAugHook, Skeleton, project_points, root_relative
from poseaug_plugin.augment.policy import Policy
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.options import DefaultPreset, Options, Surroundings, Training
from poseaug_plugin.reference.recipes import Paper, Released
from poseaug_plugin.reference.regressors import RegressorPolicy
from poseaug_plugin.runtime.optimizer import GuardedAdam


class SmallDefault(DefaultPreset):
    """The default preset that learns in every update, with a small pool, and other changes.

    Args:
        critic_interval: Of every critic.
        policy: Makes the policy, which would else be the default's.
        changes: Fields of the `Training` that is made.
    """

    def __init__(
        self,
        *,
        critic_interval: int = 2,
        policy: Callable[[Skeleton], Policy] | None = None,
        **changes: Any,
    ) -> None:
        self.critic_interval, self.policy = critic_interval, policy
        self.changes = {"pool_capacity": 40, "interval": 1, "learn_from": 512, **changes}

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        if self.policy is not None:
            options = replace(options, policy=self.policy(surroundings.skeleton))
        training = super().build(options, surroundings)
        for critic in training.critics:
            critic.interval = self.critic_interval
        if training.closed_loop is not None:
            training.closed_loop.first_update = 2
        return training._replace(**self.changes)


SMALL: dict[str, Any] = {"preset": SmallDefault()}
PUBLISHED: dict[str, Any] = {"width": 32, "pool_capacity": 40, "warmup": 0.0}

# What a hook can be, by name: preset and options.
HOOKS: dict[str, dict[str, Any]] = {
    "default": {},
    "without feedback": {"feedback": False},
    "without critics": {"critic_weight": 0},
    "released": {"preset": Released(**PUBLISHED), "total_updates": 20},
    "paper": {"preset": Paper(**PUBLISHED), "total_updates": 20},
    "random": {"preset": "random"},
}
# Those that call the estimator themselves.
ASKING = ("released", "paper")

# How an update can go, beside that.
UPDATES: dict[str, dict[str, Any]] = {
    "append": {"mix": "append"},
    "update batch": {"mix": "append", "preset": SmallDefault(learn_from=8)},
    "every other": {"preset": SmallDefault(interval=2)},
    "regressors": {"preset": SmallDefault(policy=lambda s: RegressorPolicy(s, width=32))},
}


class Batch(NamedTuple):
    """What VideoPose3D's generator yields, as tensors."""

    camera: Tensor  # (B, 9)
    inputs_3d: Tensor  # (B, T, J, 3) metres, the root's trajectory in the root joint
    inputs_2d: Tensor  # (B, T, J, 2)


@lru_cache
def _projected_poses(size: int, skeleton: Skeleton, frames: int, seed: int) -> Batch:
    poses = human_poses(size, frames, skeleton, torch.Generator().manual_seed(seed))
    camera = h36m_intrinsics(size)
    return Batch(camera.float(), poses.float(), project_points(poses, camera).float())


def absolute_batch(
    size: int = 16, skeleton: Skeleton = H36M_16, frames: int = 1, seed: int = 0
) -> Batch:
    """Every joint where it stands, in camera space."""
    return Batch(*(t.clone() for t in _projected_poses(size, skeleton, frames, seed)))


# Half of the updates learn; in the others the target's poses are in the batch.
HOOKS["closed loop"] = {
    "preset": SmallDefault(interval=2),
    "target_2d": absolute_batch(80, seed=77).inputs_2d[:, 0],
}


def with_trajectory(joints: Tensor, skeleton: Skeleton = H36M_16) -> Tensor:
    """Root-relative joints with the root's position in the root joint."""
    relative = root_relative(joints, skeleton)
    relative[..., skeleton.root, :] = joints[..., skeleton.root, :]
    return relative


def without_trajectory(joints: Tensor, skeleton: Skeleton = H36M_16) -> Tensor:
    """Inverse of `with_trajectory`."""
    root = joints[..., skeleton.root : skeleton.root + 1, :]
    absolute = joints + root
    absolute[..., skeleton.root : skeleton.root + 1, :] = root
    return absolute


def make_batch(
    size: int = 16, skeleton: Skeleton = H36M_16, frames: int = 1, seed: int = 0
) -> Batch:
    """A batch in VideoPose3D's convention."""
    batch = absolute_batch(size, skeleton, frames, seed)
    return batch._replace(inputs_3d=with_trajectory(batch.inputs_3d, skeleton))


def stream(count: int, size: int = 16, seed: int = 0, **options: Any) -> list[Batch]:
    """``count`` different batches."""
    return [make_batch(size, seed=1000 * seed + i, **options) for i in range(count)]


def make_lifter(
    joints: int = 16,
    frames: int = 1,
    *,
    batch_norm: bool = True,
    dropout: float = 0.2,
    frozen: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """A small estimator of plain torch modules: (B, T, J, 2) to (B, T, J, 3)."""
    torch.manual_seed(seed)

    def block(inputs: int) -> list[nn.Module]:
        return [
            nn.Linear(inputs, 32),
            nn.BatchNorm1d(32) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
        ]

    lifter = nn.Sequential(
        nn.Flatten(1),
        *block(2 * joints * frames),
        *block(32),
        nn.Linear(32, 3 * joints * frames),
        nn.Unflatten(1, (frames, joints, 3)),
    )
    if joints == 16:  # its first answer is somebody, somewhere
        body = absolute_batch(1).inputs_3d[0, 0]
        with torch.no_grad():
            lifter[-2].bias += (body - body[0]).flatten().repeat(frames)
    if frozen:
        lifter[1].requires_grad_(False)
        lifter[2].eval()
    return lifter


def make_hook(estimator: nn.Module, *arguments: Any, **options: Any) -> PoseAugHook:
    """A small hook for 16 joints with every network, unless ``options`` say otherwise."""
    return PoseAugHook(estimator, *arguments, **{"skeleton": "h36m_16", **SMALL, **options})


def adam(estimator: nn.Module) -> Optimizer:
    """A host's optimizer."""
    return torch.optim.Adam(estimator.parameters(), lr=1e-3)


def augmented(hook: PoseAugHook, batch: Batch) -> HostPoses:
    """What the hook gives back for a batch."""
    return hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)


def mpjpe(predicted: Tensor, target: Tensor) -> Tensor:
    """As VideoPose3D's."""
    return torch.norm(predicted - target, dim=-1).mean()


def train(
    hook: PoseAugHook | None, estimator: nn.Module, optimizer: Optimizer, batches: list[Batch]
) -> None:
    """The loop of the documentation: the augmented batch is what the estimator learns from."""
    for camera, inputs_3d, inputs_2d in batches:
        if hook is not None:
            inputs_2d, inputs_3d = hook.augment(inputs_2d, inputs_3d, camera)
        target = inputs_3d.clone()
        target[:, :, 0] = 0
        optimizer.zero_grad()
        mpjpe(estimator(inputs_2d), target).backward()
        optimizer.step()


# -- a host that does not use what the hook makes --------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


def trained(steps: int = 3, **options: Any) -> PoseAugHook:
    """A hook of its own after some steps."""
    estimator = make_lifter()
    hook = make_hook(estimator, **options)
    train(hook, estimator, adam(estimator), stream(steps))
    return hook


@dataclass(frozen=True, kw_only=True)
class Host:
    """A way of training.

    Attributes:
        optimizer: One of `OPTIMIZERS`.
        autocast: The whole step under bfloat16.
        overflows: Batches in whose gradients an Inf appears; not None means with a `GradScaler`.
        accumulation: Batches per optimizer step.
        batch_norm: In the estimator.
        dropout: Likewise.
        frozen: The first layer does not learn and the first BatchNorm is in eval mode.
        gradients_off: The host forgot gradients off while it fetches and augments.
        frames: Of a window, which the estimator lifts as a whole.
    """

    optimizer: str = "adam"
    autocast: bool = False
    overflows: tuple[int, ...] | None = None
    accumulation: int = 1
    batch_norm: bool = True
    dropout: float = 0.2
    frozen: bool = False
    gradients_off: bool = False
    frames: int = 1


Trace = list[dict[str, Any]]
"""After every batch, whatever of the host's could have changed."""


def run_host(
    host: Host,
    hook_options: dict[str, Any] | None,
    batches: list[Batch],
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> tuple[Trace, int]:
    """Train an estimator on ``batches``; with a hook, call it and ignore what it makes.

    Returns:
        The trace, and the number of the hook's updates.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    estimator = wrap(
        make_lifter(
            frames=host.frames, batch_norm=host.batch_norm, dropout=host.dropout, frozen=host.frozen
        )
    )
    optimizer = OPTIMIZERS[host.optimizer]([p for p in estimator.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**8, growth_interval=2, enabled=host.overflows is not None
    )
    hook = None if hook_options is None else make_hook(estimator, **hook_options)
    trace: Trace = []
    optimizer.zero_grad()
    for i, (camera, inputs_3d, inputs_2d) in enumerate(batches):
        target = inputs_3d.clone()
        target[:, :, 0] = 0
        with torch.autocast("cpu", torch.bfloat16) if host.autocast else nullcontext():
            torch.set_grad_enabled(not host.gradients_off)
            if hook is not None:
                hook.augment(inputs_2d, inputs_3d, camera)
            modes = {"gradients after augment": torch.is_grad_enabled()}
            torch.set_grad_enabled(True)
            loss = mpjpe(estimator(inputs_2d).float(), target) / host.accumulation
            scaler.scale(loss).backward()
            if host.overflows is not None and i in host.overflows:
                next(p.grad for p in estimator.parameters() if p.grad is not None)[0] = torch.inf
            steps = (i + 1) % host.accumulation == 0
            if steps:
                scaler.step(optimizer)
                scaler.update()
        trace.append(deepcopy(leavings(estimator, optimizer) | modes | {"loss": loss.detach()}))
        trace[-1] |= {f"scaler {k}": v for k, v in scaler.state_dict().items()}
        if steps:
            optimizer.zero_grad()
    updates = 0
    if hook is not None:
        updates = hook.diagnostics().updates
        hook.remove()
    return trace, updates


def leavings(estimator: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Weights, gradients, buffers, modes, flags, optimizer state, random streams, grad mode."""
    found: dict[str, Any] = {
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "torch stream": torch.get_rng_state(),
        "numpy stream": np.random.get_state()[1:3],  # noqa: NPY002
        "python stream": random.getstate(),
    }
    for name, parameter in estimator.named_parameters():
        found[f"weight {name}"] = parameter.detach()
        found[f"gradient {name}"] = parameter.grad
        found[f"flag {name}"] = parameter.requires_grad
    found |= {f"buffer {name}": buffer for name, buffer in estimator.named_buffers()}
    found |= {f"mode {name}": module.training for name, module in estimator.named_modules()}
    if optimizer is not None:
        state = optimizer.state_dict()
        found["groups"] = state["param_groups"]
        for index, values in state["state"].items():
            found |= {f"optimizer {index} {name}": value for name, value in values.items()}
    return found


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two nests of containers, tensors and plain values differ in a bit."""
    if type(first) is not type(second):
        return [f"{where}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return [] if same and same_bits(first, second) else [where]
    if isinstance(first, np.ndarray):
        return [] if np.array_equal(first, second) else [where]
    if isinstance(first, dict):
        if list(first) != list(second):
            return [f"{where}: keys {sorted(set(first) ^ set(second))}"]
        return [d for k in first for d in differences(first[k], second[k], f"{where}/{k}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{where}: lengths {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    return [] if first == second or (first != first and second != second) else [where]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal to the last bit, NaN or not."""
    first, second = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (first, second))
    return torch.equal(first, second)


# -- looking into the hook from outside ------------------------------------------------------------


def frozen_state(hook: PoseAugHook) -> dict[str, Any]:
    """A `state_dict` that does not change any more."""
    return deepcopy(hook.state_dict())


LEARNERS = ("policy", "critic_3d", "critic_2d", "estimator")


@contextmanager
def recorded_steps(hook: PoseAugHook, estimator: nn.Module) -> Iterator[list[str]]:
    """The networks in the order in which steps change them, the hook's own and the host's."""

    def weights() -> dict[str, Tensor]:
        modules = hook.state_dict()["training"]["modules"]
        found = {k: v for k, v in modules.items() if isinstance(v, Tensor)}
        found |= {f"estimator.{k}": v for k, v in estimator.named_parameters()}
        return {k: v.detach().clone() for k, v in found.items()}

    order: list[str] = []
    before = weights()

    def look(*_: Any) -> None:
        nonlocal before
        now = weights()
        names = {k.split(".")[0] for k in now if not same_bits(now[k], before[k])}
        order.extend(network for network in LEARNERS if network in names)
        before = now

    own_step = GuardedAdam.step

    def watched(optimizer: GuardedAdam, *arguments: Any) -> Tensor:
        left_out = own_step(optimizer, *arguments)
        look()
        return left_out

    handle = register_optimizer_step_post_hook(look)
    try:
        with mock.patch.object(GuardedAdam, "step", watched):
            yield order
    finally:
        handle.remove()


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which samples are not the same bits."""
    return torch.tensor(
        [not same_bits(a, b) for a, b in zip(before, after, strict=True)], dtype=torch.bool
    )


def all_finite(hook: PoseAugHook) -> bool:
    """Whether everything that the hook keeps is finite."""
    modules = hook.state_dict()["training"]["modules"].values()
    return all(v.isfinite().all() for v in modules if isinstance(v, Tensor))


class NoSync(TorchDispatchMode):
    """Raises where a value of a tensor would decide something on the host.

    Reading one (`item`, `bool`, `float`) and asking for as many as a mask has entries are operators
    of their own; indexing with a mask can be told by its arguments.
    """

    FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
    INDEXING = ("aten::index.", "aten::index_put", "aten::_index_put")

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function.name()
        indices = arguments[1] if name.startswith(self.INDEXING) else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if by_mask or name.startswith(self.FORBIDDEN):
            raise AssertionError(f"{function} waits for the device")
        return function(*arguments, **(options or {}))


# -- two processes ---------------------------------------------------------------------------------


def train_in_two_processes(rank: int, meeting_point: str) -> None:
    """One rank of a DistributedDataParallel training, without the hook and with it."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    try:
        batches = stream(3, seed=rank)
        wrap = nn.parallel.DistributedDataParallel
        plain, _ = run_host(Host(), None, batches, wrap)
        hooked, updates = run_host(Host(), {}, batches, wrap)
        assert updates == 3
        assert differences(plain, hooked) == []
    finally:
        torch.distributed.destroy_process_group()
