"""Batches as no host should give them, drawn at random, and what has to be true of the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from loops import Batch, absolute_batch, make_batch, same_bits, without_trajectory
from torch import Tensor

from poseaug_plugin import PoseAdapter, PoseAugError, PoseAugHook, Skeleton, root_relative
from poseaug_plugin.body.bones import joints_to_bones
from poseaug_plugin.body.presets import H36M_16

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ODD_TYPES = tuple(
    getattr(torch, name)
    for name in ("int64", "int32", "uint8", "bool", "complex64", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
)
NUMBERS = (0.0, -0.0, 1e-30, 1.0, -5.0, 1e3, 1e5, 1e30, -1e38, torch.nan, torch.inf, -torch.inf)


def spoiled_values(x: Tensor, chance: random.Random) -> Tensor:
    """Some numbers replaced by one that is hard to live with."""
    x = x.clone(memory_format=torch.contiguous_format)
    value = torch.tensor(chance.choice(NUMBERS), dtype=torch.float64).to(x.dtype)
    where = chance.randrange(4)
    flat = x.view(-1)
    if where == 0:
        flat[chance.randrange(len(flat))] = value
    elif where == 1:
        x[chance.randrange(len(x))] = value
    elif where == 2:
        x[..., chance.randrange(x.shape[-1])] = value
    else:
        x.fill_(value)
    return x


def laid_out(x: Tensor, chance: random.Random) -> Tensor:
    """The same values, otherwise in memory."""
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t[:1].expand_as(t),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.flip(0).flip(0),
    ]
    return chance.choice(ways)(x)


def of_another_kind(x: Tensor, chance: random.Random) -> Any:
    """What is no dense tensor of a usual floating-point type."""
    ways: list[Callable[[Tensor], Any]] = [
        *(lambda t, d=d: torch.nan_to_num(t.float()).to(d) for d in ODD_TYPES),
        lambda t: t.to("meta"),
        lambda t: t.to_sparse(),
        lambda t: t.detach().float().numpy(),
        lambda t: t.tolist(),
        lambda t: None,
        lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor(list(t.float())),
    ]
    return chance.choice(ways)(x)


def of_another_shape(x: Tensor, chance: random.Random) -> Tensor:
    """An axis more, less, empty, or of another length."""
    axis = chance.randrange(x.dim())
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.narrow(axis, 0, 0),
        lambda t: t.narrow(axis, 0, max(t.shape[axis] - 1, 0)),
        lambda t: torch.cat([t, t], axis),
        lambda t: t.unsqueeze(axis),
        lambda t: t.select(axis, 0),
        lambda t: t.reshape(-1),
        lambda t: t.transpose(axis, 0),
    ]
    return chance.choice(ways)(x)


def odd_camera(camera: Tensor, chance: random.Random) -> Any:
    """Intrinsics of any type and place."""
    array = camera.numpy()
    ways: list[Callable[[], Any]] = [
        *(
            lambda k=k: array.astype(k)
            for k in ("f2", ">f4", "f8", "g", "i4", "u1", "c8", "O", "U9")
        ),
        lambda: array[::-1],
        lambda: np.asfortranarray(array),
        lambda: np.ma.masked_array(array, array > 1),
        lambda: np.broadcast_to(array[0], array.shape),
        lambda: np.zeros(len(array), [("f", "f4", 9)]),
        lambda: array[0],
        lambda: array.tolist(),
        lambda: np.matrix(array),
        lambda: camera[0],
        lambda: camera.to(chance.choice(FLOATS)),
        lambda: of_another_kind(camera, chance),
        lambda: of_another_shape(camera, chance),
        lambda: spoiled_values(camera, chance),
        lambda: laid_out(camera, chance),
        lambda: None,
        lambda: chance.choice(["camera", 3, 2.5, object(), {}, [], ()]),
    ]
    return chance.choice(ways)()


def drawn_batch(chance: random.Random, frames: int, root: str) -> tuple[Any, Any, Any]:
    """A batch (2D, 3D, camera) with up to three things wrong, or none."""
    size = chance.choice((1, 2, 3, 8, 16))
    camera, absolute, inputs_2d = absolute_batch(size, frames=frames, seed=chance.randrange(9))
    of_root: dict[str, Callable[[], Tensor]] = {
        "trajectory": lambda: make_batch(size, frames=frames, seed=0).inputs_3d,
        "absolute": lambda: absolute,
        "zeroed": lambda: root_relative(absolute, H36M_16),
    }
    parts: list[Any] = [inputs_2d, of_root[root](), camera]
    if frames == 1 and chance.random() < 0.3:
        parts[:2] = [x.squeeze(1) for x in parts[:2]]
    if chance.random() < 0.3:
        kind = chance.choice(FLOATS)
        parts[:2] = [x.to(kind) for x in parts[:2]]
    ways = (spoiled_values, spoiled_values, laid_out, of_another_kind, of_another_shape)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        which = chance.randrange(3)
        x = parts[which]
        if not isinstance(x, Tensor) or x.is_nested or x.is_meta or x.layout != torch.strided:
            continue
        if which == 2 and x.shape == camera.shape:
            parts[2] = odd_camera(camera, chance)
        elif which != 2 and x.dim() > 1 and x.numel() and x.dtype in FLOATS:
            parts[which] = chance.choice(ways)(x.detach(), chance)
    return tuple(parts)


def refused_or_clean(hook: PoseAugHook, given: tuple[Any, Any, Any], returns_camera: bool) -> str:
    """Augment; "refused" in words with nothing moved, or a "clean" batch. Else a word for why."""
    trainer = hook._trainer
    assert trainer is not None
    stream = trainer.generator.get_state()
    counts = trainer.monitor.counts.clone(), trainer.num_updates
    try:
        made = hook.augment(*given, return_camera=returns_camera)
    except PoseAugError as problem:
        same = torch.equal(stream, trainer.generator.get_state())
        unchanged = torch.equal(counts[0], trainer.monitor.counts)
        in_words = str(problem).startswith("PoseAugHook.augment: ") and len(str(problem)) > 40
        return "refused" if same and unchanged and in_words else f"refused, but moved: {problem}"
    except Exception as problem:
        return f"raw {type(problem).__name__}: {problem}"
    return problem_with(hook, given, made)


def problem_with(hook: PoseAugHook, given: tuple[Any, Any, Any], made: Any) -> str:
    """What is wrong with an answer; "clean" for nothing."""
    originals = [x.detach() for x in given[:2]]
    appends = trainer_appends(hook)
    for new, old in zip(made[:2], originals, strict=True):
        size = len(old) * (2 if appends and len(new) > len(old) else 1)
        if new.shape != (size, *old.shape[1:]) or new.dtype != old.dtype:
            return f"shape {tuple(new.shape)} {new.dtype}"
    pairs = list(zip(*made[:2], strict=True))
    rows = len(originals[0])
    for i, (new_2d, new_3d) in enumerate(pairs):
        if all(same_bits(n, o[i % rows]) for n, o in zip((new_2d, new_3d), originals, strict=True)):
            continue
        if not (new_2d.isfinite().all() and new_3d.isfinite().all()):
            return "not finite"
        if new_2d.float().abs().max() > 1.01:
            return "out of frame"
        before, after = (bones_of(hook, x, H36M_16) for x in (originals[1][i % rows], new_3d))
        resolution = 4 * torch.finfo(new_3d.dtype).eps * max(before.max(), after.max())
        if ((after == 0) & (before > resolution)).any():
            return "bone without length"
    return "clean"


def trainer_appends(hook: PoseAugHook) -> bool:
    """Whether an augmented copy is put behind the batch."""
    assert hook._trainer is not None
    return hook._trainer.augmenter.appends


def bones_of(hook: PoseAugHook, joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Lengths of the bones of one sample in the host's convention."""
    joints = joints.detach().double().reshape(1, -1, skeleton.num_joints, 3)
    assert isinstance(hook.adapter, PoseAdapter)
    if hook.adapter.root == "trajectory":
        joints = without_trajectory(joints)
    return joints_to_bones(joints, skeleton).norm(dim=-1)


def unspoiled() -> Batch:
    """A batch as it should be."""
    return make_batch(16)
