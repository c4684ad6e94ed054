"""Everything that changes is state: loads safely, is checked whole first, resumes bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from loops import (
    HOOKS,
    PUBLISHED,
    Batch,
    SmallDefault,
    adam,
    augmented,
    differences,
    frozen_state,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    stream,
    train,
    trained,
    without_trajectory,
)
from torch import Tensor

from poseaug_plugin import PoseAugError, PoseAugHook
from poseaug_plugin.reference.recipes import Paper

RESUMED: dict[str, dict[str, Any]] = {
    **HOOKS,
    "append": {"mix": "append"},
    "small pool": {"preset": SmallDefault(pool_capacity=5, critic_interval=1)},
    "every other": {"preset": SmallDefault(interval=2)},
}
each_hook = pytest.mark.parametrize("hook", RESUMED)


@lru_cache
def sample(name: str) -> PoseAugHook:
    """A trained hook to look at."""
    return trained(**RESUMED[name])


def sample_state(name: str = "default") -> dict[str, Any]:
    """Its state, to do with as one likes."""
    return frozen_state(sample(name))


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- what is in it ---------------------------------------------------------------------------------


@each_hook
def test_state_survives_a_file_that_is_read_safely(hook: str) -> None:
    state = sample(hook).state_dict()
    assert differences(copy.deepcopy(dict(state)), through_a_file(state)) == []


def plain(value: Any) -> bool:
    """Tensors, numbers, strings, and containers of them."""
    if isinstance(value, dict):
        return all(isinstance(k, (str, int)) and plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))
    return type(value) in (Tensor, int, float, str, bool, type(None))


@each_hook
def test_state_is_tensors_and_plain_values(hook: str) -> None:
    assert plain(sample(hook).state_dict())


def test_state_before_the_first_batch() -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    state = through_a_file(hook.state_dict())
    other = make_hook(make_lifter(), skeleton=None)
    other.load_state_dict(state)
    assert other.skeleton is None


def test_taking_the_state_changes_nothing() -> None:
    states = []
    for looks in (False, True):
        estimator = make_lifter()
        hook = make_hook(estimator)
        optimizer = adam(estimator)
        for batch in stream(3):
            train(hook, estimator, optimizer, [batch])
            if looks:
                hook.state_dict()
                hook.diagnostics()
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize(
    "part",
    [
        *("policy", "critic_3d", "critic_2d", "critic_3d_pool", "critic_2d_pool", "monitor"),
        *("policy_optimizer", "critic_3d_optimizer", "critic_2d_optimizer", "controller"),
    ],
)
def test_everything_that_changes_is_in_it(part: str) -> None:
    hook = trained()
    # Good answers: a lifter that has hardly begun tells the controller nothing.
    answers = without_trajectory(augmented(hook, make_batch()).inputs_3d)
    hook.observe(answers + torch.linspace(-0.05, 0.05, 16)[:, None])
    hook.step()
    states = frozen_state(make_hook(make_lifter())), frozen_state(hook)
    modules = [state["training"]["modules"] for state in states]
    before, after = ({k: v for k, v in m.items() if k.split(".")[0] == part} for m in modules)
    assert before
    assert differences(before, after) != []


@pytest.mark.parametrize("key", ["num_updates", "generator"])
def test_count_and_random_stream_are_in_it(key: str) -> None:
    states = frozen_state(make_hook(make_lifter())), sample_state()
    assert differences(*(state["training"][key] for state in states)) != []


def test_state_of_the_random_preset_is_small() -> None:
    modules = sample("random").state_dict()["training"]["modules"]
    assert {name.split(".")[0] for name in modules} == {"monitor"}


# -- going on --------------------------------------------------------------------------------------


class Training:
    """A host that saves everything."""

    def __init__(self, **options: Any) -> None:
        self.estimator = make_lifter()
        self.optimizer = adam(self.estimator)
        self.hook = make_hook(self.estimator, **options)

    def train(self, batches: list[Batch]) -> None:
        train(self.hook, self.estimator, self.optimizer, batches)

    def save(self) -> Any:
        state = {
            "estimator": self.estimator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "poseaug": self.hook.state_dict(),
            "random": torch.get_rng_state(),
        }
        return through_a_file(state)

    def load(self, state: Any) -> None:
        self.estimator.load_state_dict(state["estimator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hook.load_state_dict(state["poseaug"])
        torch.set_rng_state(state["random"])

    def everything(self) -> Any:
        return copy.deepcopy(
            (leavings(self.estimator, self.optimizer), through_a_file(self.hook.state_dict()))
        )


@each_hook
@pytest.mark.parametrize("skeleton", ["h36m_16", None], ids=["begun before", "not begun"])
def test_resumed_training_is_the_uninterrupted_one(hook: str, skeleton: str | None) -> None:
    batches = stream(6)
    whole = Training(**RESUMED[hook])
    whole.train(batches)
    first = Training(**RESUMED[hook])
    first.train(batches[:3])
    state = first.save()
    torch.rand(7)  # something else in between
    second = Training(**RESUMED[hook], seed=3, skeleton=skeleton)
    if skeleton is not None:
        second.train(stream(1, seed=9))  # all of which is to be forgotten
    second.load(state)
    second.train(batches[3:])
    assert differences(whole.everything(), second.everything()) == []


def test_comparison_of_trainings_sees_a_forgotten_hook_state() -> None:
    batches = stream(4)
    whole, resumed = Training(), Training()
    whole.train(batches)
    resumed.train(batches[:2])
    state = resumed.save()
    second = Training()
    state["poseaug"] = second.hook.state_dict()
    second.load(state)
    second.train(batches[2:])
    assert differences(whole.everything(), second.everything()) != []


@pytest.mark.parametrize("hook", ["default", "paper", "released", "random"])
def test_loading_into_a_hook_that_does_not_know_its_skeleton_yet(hook: str) -> None:
    state = sample_state(hook)
    other = make_hook(make_lifter(), skeleton=None, **RESUMED[hook])
    other.load_state_dict(state)
    assert other.skeleton is not None
    assert other.skeleton.name == "h36m_16"
    assert differences(through_a_file(state), through_a_file(other.state_dict())) == []


def test_state_from_before_the_first_batch_is_for_hooks_that_have_not_begun() -> None:
    empty = make_hook(make_lifter(), skeleton=None).state_dict()
    make_hook(make_lifter(), skeleton=None).load_state_dict(empty)
    make_hook(make_lifter()).load_state_dict(empty)
    hook = trained()
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"load_state_dict: it was saved before the first batch"):
        hook.load_state_dict(empty)
    assert differences(before, hook.state_dict()) == []


def test_loaded_hook_asks_no_more_for_its_skeleton() -> None:
    other = make_hook(make_lifter(), skeleton=None)
    other.load_state_dict(sample_state())
    augmented(other, make_batch())


def test_loading_forgets_the_batch_that_waits() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    state = frozen_state(hook)
    estimator(augmented(hook, make_batch()).inputs_2d)
    hook.load_state_dict(state)
    hook.step()
    assert differences(state, hook.state_dict()) == []


def test_loaded_state_is_a_copy() -> None:
    first, second = trained(), make_hook(make_lifter())
    second.load_state_dict(first.state_dict())
    before = frozen_state(first)
    train(second, second._estimator, adam(second._estimator), stream(2, seed=4))
    assert differences(before, first.state_dict()) == []


def test_loading_draws_nothing_from_the_global_streams() -> None:
    state = sample_state()
    estimator = make_lifter()
    before = copy.deepcopy(leavings(estimator))
    make_hook(estimator, skeleton=None).load_state_dict(state)
    assert differences(before, leavings(estimator)) == []


# -- wrong states ----------------------------------------------------------------------------------


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def spoil(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return spoil


def with_value(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return spoil


def with_entry(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def spoil(state: dict[str, Any]) -> None:
        state["training"]["modules"][name].view(-1)[0] = value

    return spoil


MODULES = ("training", "modules")
FIRST, SECOND = ((*MODULES, f"policy_optimizer.{x}_moment") for x in ("first", "second"))
SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "no version": without("version"),
    "another version": with_value("version", value=2),
    "one key too many": with_value("more", value=1),
    "no skeleton": with_value("skeleton", value=None),
    "skeleton as text": with_value("skeleton", value="h36m_16"),
    "skeleton with a hole": without("skeleton", "parents", "right_knee"),
    "training as a list": with_value("training", value=[]),
    "training with more": with_value("training", "more", value=1),
    "no networks": without(*MODULES),
    "networks as a list": with_value(*MODULES, value=[]),
    "weight missing": without(*MODULES, "critic_3d.layer_1.weight"),
    "weight too many": with_value(*MODULES, "policy.more", value=torch.zeros(2)),
    "weight of another shape": with_value(*MODULES, "critic_2d.score.bias", value=torch.zeros(7)),
    "weight of another type": with_value(
        *MODULES, "critic_2d.score.bias", value=torch.zeros(1, dtype=torch.float64)
    ),
    "weight as a number": with_value(*MODULES, "critic_2d.score.bias", value=0.5),
    "weight without values": with_value(
        *MODULES, "critic_2d.score.bias", value=torch.zeros(1, device="meta")
    ),
    "sparse weight": with_value(*MODULES, "critic_2d.score.bias", value=torch.zeros(1).to_sparse()),
    "weight NaN": with_entry("critic_2d.score.bias", torch.nan),
    "pool Inf": with_entry("critic_2d_pool.items", torch.inf),
    "fill as text": with_value(*MODULES, "critic_3d_pool._extra_state", value="full"),
    "fill above the capacity": with_value(*MODULES, "critic_3d_pool._extra_state", value=10**6),
    "fill below zero": with_value(*MODULES, "critic_3d_pool._extra_state", value=-1),
    "optimizer missing": without(*SECOND),
    "optimizer as text": with_value(*FIRST, value="adam"),
    "optimizer with fewer parameters": with_value(
        *MODULES, "critic_2d_optimizer.steps", value=torch.zeros(1)
    ),
    "first moment missing": without(*FIRST),
    "first moment of another shape": with_value(*FIRST, value=torch.zeros(7)),
    "first moment NaN": with_entry(FIRST[-1], torch.nan),
    "second moment of another shape": with_value(*SECOND, value=torch.zeros(7)),
    "second moment below zero": with_entry(SECOND[-1], -1e-3),
    "step count missing": without(*MODULES, "policy_optimizer.steps"),
    "step count below zero": with_entry("policy_optimizer.steps", -1.0),
    "strength NaN": with_entry("controller.strength", torch.nan),
    "strength below zero": with_entry("controller.strength", -0.1),
    "strength above one": with_entry("controller.strength", 1.5),
    "strength missing": without(*MODULES, "controller.strength"),
    "readings below zero": with_entry("monitor.seen", -1.0),
    "updates as text": with_value("training", "num_updates", value="3"),
    "updates as a flag": with_value("training", "num_updates", value=True),
    "updates below zero": with_value("training", "num_updates", value=-1),
    "no random stream": without("training", "generator"),
    "random stream as a number": with_value("training", "generator", value=3),
    "random stream of zeros": lambda state: state["training"]["generator"].zero_(),
}


@pytest.mark.parametrize("knows_skeleton", [True, False], ids=["", "no skeleton yet"])
@pytest.mark.parametrize("kind", SPOILED)
def test_wrong_state_is_refused_and_changes_nothing(kind: str, knows_skeleton: bool) -> None:
    state = sample_state()
    SPOILED[kind](state)
    options = {} if knows_skeleton else {"skeleton": None}
    hook = make_hook(make_lifter(), seed=5, **options)
    skeleton, before = hook.skeleton, frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"^PoseAugHook\.load_state_dict: "):
        hook.load_state_dict(state)
    assert hook.skeleton == skeleton
    assert differences(before, hook.state_dict()) == []


@pytest.mark.parametrize("garbage", [None, 3, "state", [], {}, torch.zeros(3), {"version": 1}])
def test_garbage_is_refused(garbage: Any) -> None:
    hook = make_hook(make_lifter())
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match="expected the keys"):
        hook.load_state_dict(garbage)
    assert differences(before, hook.state_dict()) == []


KINDS = ["default", "without feedback", "without critics", "released", "paper", "random"]


@pytest.mark.parametrize("theirs", KINDS)
@pytest.mark.parametrize("ours", KINDS)
def test_state_of_another_preset_is_refused(theirs: str, ours: str) -> None:
    state = sample_state(theirs)
    hook = make_hook(make_lifter(), **HOOKS[ours])
    if theirs == ours:
        hook.load_state_dict(state)
        return
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"saved with another preset or options|must be"):
        hook.load_state_dict(state)
    assert differences(before, hook.state_dict()) == []


def test_state_of_another_width_is_refused() -> None:
    preset = Paper(**{**PUBLISHED, "width": 16})
    hook = make_hook(make_lifter(), preset=preset, total_updates=20)
    shapes = r"policy\..* must be a tensor of shape \(.*16.* and \d+ more\.$"
    with pytest.raises(PoseAugError, match=shapes):
        hook.load_state_dict(sample_state("paper"))


def test_state_of_another_skeleton_is_refused() -> None:
    hook = make_hook(make_lifter(17), skeleton="h36m_17")
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"saved for Skeleton\('h36m_16'.*has .*'h36m_17'"):
        hook.load_state_dict(sample_state())
    assert differences(before, hook.state_dict()) == []


def test_every_problem_with_the_networks_is_named_at_once() -> None:
    state = sample_state()
    with_entry("policy_optimizer.steps", -1.0)(state)
    state["training"]["modules"]["critic_2d.score.bias"] = torch.zeros(7)
    with pytest.raises(PoseAugError, match=r"policy_optimizer\.steps.*; .*critic_2d\.score\.bias"):
        make_hook(make_lifter()).load_state_dict(state)


def test_refused_hook_goes_on_as_if_nothing_had_been() -> None:
    state = sample_state()
    SPOILED["random stream as a number"](state)
    states = []
    for tries in (False, True):
        training = Training()
        training.train(stream(2))
        if tries:
            with pytest.raises(PoseAugError):
                training.hook.load_state_dict(state)
        training.train(stream(2, seed=4))
        states.append(training.everything())
    assert differences(*states) == []
