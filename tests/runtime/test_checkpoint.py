"""States that were changed on their way: refused whole, or loaded and trained with, finitely.

How a hook's own states are saved, loaded and resumed is tested beside the hook.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from loops import (
    HOOKS,
    adam,
    all_finite,
    differences,
    frozen_state,
    make_hook,
    make_lifter,
    stream,
    train,
)
from torch import Tensor, nn

from poseaug_plugin import AugmentationPolicy, PoseAugError, PoseAugHook

STEPS = 10  # that a loaded state is trained with
PRESETS = ("default", "released")
MODULES = ("training", "modules")


@lru_cache
def source(preset: str) -> PoseAugHook:
    """A hook whose pools are full; its state is what is spoiled."""
    estimator = make_lifter()
    hook = make_hook(estimator, **HOOKS[preset])
    train(hook, estimator, adam(estimator), stream(8))
    return hook


def saved_state(preset: str = "default") -> dict[str, Any]:
    """Its state, to do with as one likes."""
    return frozen_state(source(preset))


def begun(preset: str = "default") -> tuple[PoseAugHook, nn.Module]:
    """Another hook, which has learned something else, and its estimator."""
    estimator = make_lifter(seed=1)
    hook = make_hook(estimator, seed=5, **HOOKS[preset])
    train(hook, estimator, adam(estimator), stream(2, seed=1))
    return hook, estimator


@cache
def refusing(preset: str) -> PoseAugHook:
    """A hook for states that are refused, and so leave it as it is."""
    return begun(preset)[0]


def is_refused(state: Any, preset: str = "default") -> bool:
    """Whether a hook refuses the state and stays what it is; else it has to train with it."""
    hook = refusing(preset)
    before = frozen_state(hook)
    problem = ""
    try:
        hook.load_state_dict(state)
    except PoseAugError as refusal:
        problem = str(refusal)
    if problem:
        assert problem.startswith("PoseAugHook.load_state_dict: ")
        assert differences(before, frozen_state(hook)) == []
        return True
    hook.load_state_dict(before)
    other, estimator = begun(preset)
    other.load_state_dict(state)
    train(other, estimator, adam(estimator), stream(STEPS, seed=2))
    assert all_finite(other)
    assert all(p.isfinite().all() for p in estimator.parameters())
    assert other.diagnostics().updates == state["training"]["num_updates"] + STEPS
    return False


def spoiled(*path: str, by: Callable[[Any], Any], preset: str = "default") -> dict[str, Any]:
    """The saved state with one value changed."""
    state = within = saved_state(preset)
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = by(within[path[-1]])
    return state


def test_what_was_not_spoiled_is_loaded() -> None:
    for preset in PRESETS:
        assert not is_refused(saved_state(preset), preset)


# -- tensors ---------------------------------------------------------------------------------------


def with_first(value: float) -> Callable[[Tensor], Tensor]:
    """Changes one entry of a tensor."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


# One tensor of every kind, and what may not be negative.
TENSORS = (
    *("policy.widening", "critic_3d.layer_1.weight", "critic_2d.score.bias"),
    *("policy_optimizer.first_moment", "critic_3d_optimizer.second_moment"),
    *("critic_2d_optimizer.steps", "critic_3d_pool.items", "controller.strength"),
    *("controller.ratio", "monitor.means", "monitor.seen", "monitor.counts"),
)
COUNTS = (
    *("policy_optimizer.second_moment", "critic_3d_optimizer.second_moment"),
    *("critic_2d_optimizer.steps", "monitor.seen", "monitor.counts"),
)

MISFITS: dict[str, Callable[[Tensor], Any]] = {
    "with an axis more": lambda t: t[None],
    "without its axes": lambda t: t.reshape(-1)[:1].squeeze() if t.dim() else t.expand(2),
    "with an entry more": lambda t: torch.cat([t.reshape(-1), t.reshape(-1)[:1]]),
    "empty": lambda t: t.new_zeros(0),
    "in float64": lambda t: t.double() if t.dtype != torch.float64 else t.float(),
    "in half": lambda t: t.half(),
    "complex": lambda t: t.to(torch.complex64),
    "of flags": lambda t: t.bool(),
    "without values": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t.float(), t.float()]),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "an array": lambda t: t.numpy(),
    "a list": lambda t: t.tolist(),
    "a number": lambda t: 0.5,
    "text": lambda t: "0.5",
    "nothing": lambda t: None,
    "its type": type,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quant")
@pytest.mark.parametrize("kind", MISFITS)
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused(name: str, kind: str) -> None:
    assert is_refused(spoiled(*MODULES, name, by=MISFITS[kind]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [name for name in TENSORS if name != "monitor.counts"])
def test_tensors_that_are_not_finite_are_refused(name: str, value: float) -> None:
    assert is_refused(spoiled(*MODULES, name, by=with_first(value)))


@pytest.mark.parametrize("name", COUNTS)
def test_negative_counts_and_second_moments_are_refused(name: str) -> None:
    assert is_refused(spoiled(*MODULES, name, by=with_first(-1)))


def transposed(tensor: Tensor) -> Tensor:
    """The same values, their memory the other way round."""
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "one number for all": lambda t: torch.zeros((), dtype=t.dtype).expand(t.shape),
    "every second one": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": transposed,
    "a parameter": lambda t: nn.Parameter(t, requires_grad=t.is_floating_point()),
    "in a graph": lambda t: t.clone().requires_grad_() * 1.0 if t.is_floating_point() else t,
    "zeros": torch.zeros_like,
    "large": lambda t: torch.full_like(t, 100 if t.dtype == torch.uint8 else 1e6),
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_laid_out_otherwise_are_loaded(name: str, kind: str) -> None:
    if (name, kind) == ("controller.strength", "large"):
        pytest.skip("a strength is 1 at most")
    state = spoiled(*MODULES, name, by=HARMLESS[kind])
    expected = state["training"]["modules"][name].detach().clone()
    assert not is_refused(state)
    hook, _ = begun()
    hook.load_state_dict(state)
    loaded = hook.state_dict()["training"]["modules"][name]
    assert torch.equal(loaded, expected)
    assert not loaded.requires_grad
    assert loaded.is_contiguous()


def test_tensors_made_in_inference_mode_are_loaded() -> None:
    state = saved_state()
    with torch.inference_mode():
        modules = state["training"]["modules"]
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in modules.items()}
    state["training"]["modules"] = copies
    assert not is_refused(state)


def test_hook_does_not_keep_the_tensors_it_loaded() -> None:
    state, hook = saved_state(), begun()[0]
    hook.load_state_dict(state)
    before = frozen_state(hook)
    for value in state["training"]["modules"].values():
        if isinstance(value, Tensor):
            value.fill_(7)
    state["training"]["generator"].zero_()
    assert differences(before, frozen_state(hook)) == []


class OwnPolicy(AugmentationPolicy):
    """With state that looks odd and is its own."""

    def __init__(self) -> None:
        super().__init__("h36m_16")
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("counts", torch.tensor([-1.0]))
        self.note = "made"

    def get_extra_state(self) -> str:
        return self.note

    def set_extra_state(self, state: str) -> None:
        self.note = state


def test_policies_of_ones_own_may_have_any_state() -> None:
    states = []
    for note in ("first", "second"):
        policy, estimator = OwnPolicy(), make_lifter()
        policy.note = note
        hook = PoseAugHook(estimator, skeleton="h36m_16", policy=policy)
        if states:
            hook.load_state_dict(states[0])
            assert policy.note == "first"
        train(hook, estimator, adam(estimator), stream(2))
        states.append(frozen_state(hook))
    for value in (torch.nan, torch.inf):
        states[0]["training"]["modules"]["policy.mask"][0] = value
        with pytest.raises(PoseAugError, match=r"policy\.mask must be finite"):
            hook.load_state_dict(states[0])


# -- everything else -------------------------------------------------------------------------------

WRONG: tuple[Any, ...] = (
    *(None, -1, 10**9, 0.5, True, "text", [], {}, (1, 2), 1j, b"bytes", print),
    *(torch.zeros(3), torch.zeros(()), torch.tensor([1, 1]), np.zeros(3)),
    *(torch.zeros(3, device="meta"), torch.zeros(3).to_sparse()),
)
each_wrong = pytest.mark.parametrize("value", WRONG, ids=lambda v: repr(v)[:20])


@each_wrong
@pytest.mark.parametrize(
    "path",
    [
        ("version",),
        ("skeleton",),
        ("skeleton", "parents"),
        ("skeleton", "parts"),
        ("training",),
        MODULES,
        ("training", "generator"),
        (*MODULES, "critic_3d_pool._extra_state"),
    ],
    ids=".".join,
)
def test_values_of_another_kind_are_refused(path: tuple[str, ...], value: Any) -> None:
    state = spoiled(*path, by=lambda _: value)
    if path == ("training",) and value is None:
        state["skeleton"] = None  # a state from before the first batch
    assert is_refused(state)


@each_wrong
@pytest.mark.parametrize("part", ["name", "parents", "parts", "pairs"])
def test_skeletons_of_another_kind_are_refused_or_trained_with(part: str, value: Any) -> None:
    """By a hook that takes whatever skeleton there is."""
    state = spoiled("skeleton", part, by=lambda _: value)
    estimator = make_lifter()
    hook = make_hook(estimator, skeleton=None)
    try:
        hook.load_state_dict(state)
    except PoseAugError:
        assert hook.skeleton is None
        assert hook.state_dict()["training"] is None
    else:
        train(hook, estimator, adam(estimator), stream(STEPS, seed=2))
        assert all_finite(hook)


@each_wrong
def test_counts_of_another_kind_are_refused(value: Any) -> None:
    state = spoiled("training", "num_updates", by=lambda _: value)
    assert is_refused(state) == (value != 10**9 if isinstance(value, int) else True)


@pytest.mark.parametrize("within", [(), ("training",), ("skeleton",), MODULES], ids=".".join)
@pytest.mark.parametrize("kind", ["missing", "more", "no text"])
def test_keys_that_are_missing_or_more_are_refused(within: tuple[str, ...], kind: str) -> None:
    state = saved_state()
    inner: dict[Any, Any] = state
    for key in within:
        inner = inner[key]
    for key in [next(reversed(inner))] if kind != "missing" else list(inner):
        state = saved_state()
        inner = state
        for step in within:
            inner = inner[step]
        if kind == "missing":
            del inner[key]
        else:
            inner["more" if kind == "more" else (1, "x")] = inner[key]
        if within == ("skeleton",) and key in ("parts", "pairs") and kind == "missing":
            continue  # has a default, and is another skeleton then
        assert is_refused(state)


GENERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "noise": lambda t: torch.arange(len(t)).to(torch.uint8),
    "of signed bytes": lambda t: t.to(torch.int8),
    "sparse": lambda t: t.to_sparse(),
    "without values": lambda t: t.to("meta"),
    "one number for all": lambda t: torch.zeros((), dtype=t.dtype).expand(t.shape),
    "every second byte": lambda t: torch.stack([t, t], 1)[:, 0],
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "with an axis more": lambda t: t[None],
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", GENERATORS)
def test_states_that_are_no_random_streams_are_refused_or_replaced(kind: str) -> None:
    """One of another length may be that of another device, which is not gone on with."""
    refused = is_refused(spoiled("training", "generator", by=GENERATORS[kind]))
    assert refused or kind in ("with an axis more", "noise", "every second byte")


def test_random_streams_of_another_device_are_replaced() -> None:
    assert not is_refused(spoiled("training", "generator", by=lambda t: t[:16].clone()))


# -- many at random --------------------------------------------------------------------------------


def mutated(state: Any, chance: random.Random, depth: int = 0) -> Any:
    """Something of the state, changed in some way."""
    if isinstance(state, dict) and (depth < 2 or chance.random() < 0.97) and state:
        key = chance.choice(list(state))
        way = chance.random()
        if way < 0.06:
            return {k: v for k, v in state.items() if k != key}
        if way < 0.1:
            return {**state, f"{key}_more": state[key]}
        if way < 0.14:
            other = chance.choice(list(state))
            return {**state, key: state[other], other: state[key]}
        return {**state, key: mutated(state[key], chance, depth + 1)}
    if isinstance(state, Tensor) and chance.random() < 0.85:
        kinds = [*MISFITS.values(), *HARMLESS.values()]
        numbers = [torch.nan, torch.inf, -1.0, 1e30, -1e30, 0.0]
        if state.is_floating_point() and state.numel() and chance.random() < 0.5:
            return with_first(chance.choice(numbers))(state)
        return chance.choice(kinds)(state)
    return chance.choice(WRONG)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quant")
@pytest.mark.parametrize("seed", range(120))
def test_random_mutations_are_refused_or_trained_with(seed: int) -> None:
    chance = random.Random(seed)
    preset = PRESETS[seed % len(PRESETS)]
    state = saved_state(preset)
    for _ in range(chance.choice((1, 1, 2, 3))):
        state = mutated(state, chance)
        if not isinstance(state, dict):
            break
    if isinstance(state, dict) and state.get("training", 0) is None:
        state = {}  # from before the first batch
    is_refused(state, preset)


def test_random_mutations_are_refused_sometimes_and_trained_with_sometimes() -> None:
    """Or else the test above would see one half of what it is for."""
    found = set()
    for seed in range(40):
        state = saved_state()
        found.add(is_refused(mutated(state, random.Random(seed))))
        if found == {False, True}:
            return
    raise AssertionError(found)


# -- how large it is -------------------------------------------------------------------------------


def test_default_checkpoint_is_small() -> None:
    estimator = make_lifter(17)
    hook = PoseAugHook(estimator, skeleton="h36m_17")
    batches = stream(2, skeleton=hook.skeleton)
    train(hook, estimator, adam(estimator), batches)
    file = io.BytesIO()
    torch.save(hook.state_dict(), file)
    assert len(file.getvalue()) <= 2e6
