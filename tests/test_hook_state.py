"""Promise 4: everything that changes is state, checked whole; what the diagnostics say of it."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import pytest
import torch
from loops import (
    HOOKS,
    Batch,
    differences,
    frozen_state,
    leavings,
    make_batch,
    make_hook,
    make_lifter,
    mpjpe,
    stream,
    train,
)
from torch import Tensor

from poseaug_plugin import (
    PoseAugConfig,
    PoseAugError,
    PoseAugHook,
    PoseAugWarning,
    Spread,
)
from poseaug_plugin.diagnostics import _REMEDIES, Diagnostics, Monitor

RESUMED: dict[str, dict[str, Any]] = {
    **HOOKS,
    "append": {"mix": "append"},
    "small pool": {"pool_capacity": 5, "critic_interval": 1},
}
each_hook = pytest.mark.parametrize("hook", RESUMED)


def trained(steps: int = 3, **options: Any) -> PoseAugHook:
    estimator = make_lifter()
    hook = make_hook(estimator, **options)
    train(hook, estimator, torch.optim.Adam(estimator.parameters()), stream(steps))
    return hook


@lru_cache
def sample(name: str) -> PoseAugHook:
    """A trained hook to look at."""
    return trained(**RESUMED[name])


def sample_state(name: str = "predicted") -> dict[str, Any]:
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
        optimizer = torch.optim.Adam(estimator.parameters())
        for batch in stream(3):
            train(hook, estimator, optimizer, [batch])
            if looks:
                hook.state_dict()
                hook.diagnostics()
        states.append(frozen_state(hook))
    assert differences(*states) == []


@pytest.mark.parametrize(
    "part",
    ["policy", "critic_3d", "critic_2d", "pool_3d", "pool_2d", "predictor", "monitor"],
)
def test_everything_that_changes_is_in_it(part: str) -> None:
    states = frozen_state(make_hook(make_lifter())), sample_state("predicted")
    modules = [state["training"]["modules"] for state in states]
    before, after = ({k: v for k, v in m.items() if k.split(".")[0] == part} for m in modules)
    assert before
    assert differences(before, after) != []


# -- going on --------------------------------------------------------------------------------------


class Training:
    """A host that saves everything."""

    def __init__(self, **options: Any) -> None:
        self.estimator = make_lifter()
        self.optimizer = torch.optim.Adam(self.estimator.parameters(), lr=1e-3)
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
def test_resumed_training_is_the_uninterrupted_one(hook: str) -> None:
    batches = stream(6)
    whole = Training(**RESUMED[hook])
    whole.train(batches)
    first = Training(**RESUMED[hook])
    first.train(batches[:3])
    state = first.save()
    torch.rand(7)  # something else in between
    second = Training(**RESUMED[hook], seed=3)
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


@pytest.mark.parametrize("hook", ["default", "predicted", "released"])
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
    camera, inputs_3d, inputs_2d = make_batch()
    other.augment(inputs_2d, inputs_3d, camera)


def test_loading_forgets_the_batch_that_waits() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator)
    state = frozen_state(hook)
    camera, inputs_3d, inputs_2d = make_batch()
    outputs = hook.augment(inputs_2d, inputs_3d, camera)
    estimator(outputs.inputs_2d)
    hook.load_state_dict(state)
    hook.step()
    assert differences(state, hook.state_dict()) == []


def test_loaded_state_is_a_copy() -> None:
    first, second = trained(), make_hook(make_lifter())
    second.load_state_dict(first.state_dict())
    before = frozen_state(first)
    train(
        second,
        second._estimator,
        torch.optim.Adam(second._estimator.parameters()),
        stream(2, seed=4),
    )
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


MODULES, OPTIMIZERS = ("training", "modules"), ("training", "optimizers")
FIRST_MOMENT = (*OPTIMIZERS, "policy", "state", 0)
SPOILED: dict[str, Callable[[dict[str, Any]], None]] = {
    "no version": without("version"),
    "another version": with_value("version", value=2),
    "one key too many": with_value("more", value=1),
    "no skeleton": with_value("skeleton", value=None),
    "skeleton as text": with_value("skeleton", value="h36m_16"),
    "skeleton with a hole": without("skeleton", "parents", "right_knee"),
    "training as a list": with_value("training", value=[]),
    "no networks": without(*MODULES),
    "networks as a list": with_value(*MODULES, value=[]),
    "weight missing": without(*MODULES, "critic_3d.layer_1.weight"),
    "weight too many": with_value(*MODULES, "policy.more", value=torch.zeros(2)),
    "weight of another shape": with_value(*MODULES, "critic_2d.score.bias", value=torch.zeros(7)),
    "weight as a number": with_value(*MODULES, "critic_2d.score.bias", value=0.5),
    "fill as text": with_value(*MODULES, "pool_3d._extra_state", value="full"),
    "fill above the capacity": with_value(*MODULES, "pool_3d._extra_state", value=10**6),
    "fill below zero": with_value(*MODULES, "pool_3d._extra_state", value=-1),
    "no optimizers": without(*OPTIMIZERS),
    "optimizers as a list": with_value(*OPTIMIZERS, value=[]),
    "optimizer missing": without(*OPTIMIZERS, "predictor"),
    "optimizer as text": with_value(*OPTIMIZERS, "policy", value="adam"),
    "optimizer with fewer parameters": with_value(
        *OPTIMIZERS, "predictor", "param_groups", 0, "params", value=[0]
    ),
    "first moment missing": without(*FIRST_MOMENT, "exp_avg"),
    "first moment of another shape": with_value(*FIRST_MOMENT, "exp_avg", value=torch.zeros(7)),
    "second moment of another shape": with_value(*FIRST_MOMENT, "exp_avg_sq", value=torch.zeros(7)),
    "step count missing": without(*FIRST_MOMENT, "step"),
    "updates as text": with_value("training", "num_updates", value="3"),
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


@pytest.mark.parametrize("theirs", ["default", "predicted", "released", "paper", "random"])
@pytest.mark.parametrize("ours", ["default", "predicted", "released", "paper", "random"])
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
    hook = make_hook(make_lifter(), width=16)
    shapes = r"critic_3d\..* must be a tensor of shape \(.*16.* and \d+ more\.$"
    with pytest.raises(PoseAugError, match=shapes):
        hook.load_state_dict(sample_state())


def test_state_of_another_skeleton_is_refused() -> None:
    hook = make_hook(make_lifter(17), skeleton="h36m_17")
    before = frozen_state(hook)
    with pytest.raises(PoseAugError, match=r"saved for Skeleton\('h36m_16'.*has .*'h36m_17'"):
        hook.load_state_dict(sample_state())
    assert differences(before, hook.state_dict()) == []


def test_every_problem_is_named_at_once() -> None:
    state = sample_state()
    state["training"]["num_updates"] = -1
    state["training"]["modules"]["critic_2d.score.bias"] = torch.zeros(7)
    with pytest.raises(PoseAugError, match=r"critic_2d\.score\.bias.*; .*num_updates"):
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


# -- diagnostics -----------------------------------------------------------------------------------


@each_hook
def test_diagnostics_are_plain_numbers(hook: str) -> None:
    diagnostics = sample(hook).diagnostics()
    assert {type(value) for value in diagnostics} == {int, float}


@each_hook
def test_diagnostics_lie_where_they_can(hook: str) -> None:
    d = sample(hook).diagnostics()
    assert d.updates == 3
    assert 0 <= d.kept_share <= 1
    assert 0 <= d.angle_change <= 180
    assert 0 <= d.length_change < 1
    assert d.diversity > 0
    assert d.unusable_samples == d.skipped_steps == 0


def test_default_preset_has_no_predictor_and_reports_the_rest() -> None:
    hook = sample("default")
    missing = [name for name, value in hook.diagnostics()._asdict().items() if value != value]
    assert missing == ["predictor_r_squared", "accuracy_motion"]
    assert not [name for name in hook.state_dict()["training"]["modules"] if "predictor" in name]
    assert hook.losses.policy.feedback == 0


def test_hook_with_every_network_reports_everything() -> None:
    d = sample("predicted").diagnostics()
    assert [name for name, value in d._asdict().items() if value != value] == ["accuracy_motion"]
    assert 0 <= d.accuracy_3d <= 1
    assert 0 <= d.accuracy_2d <= 1
    assert d.predictor_r_squared <= 1
    assert d.hardness_ratio > 0


def test_what_does_not_apply_is_nan() -> None:
    d = sample("random").diagnostics()
    assert d.accuracy_3d != d.accuracy_3d
    assert d.accuracy_2d != d.accuracy_2d
    assert d.predictor_r_squared != d.predictor_r_squared


@pytest.mark.parametrize("operation", ["bone_angle", "bone_length", "rigid"])
def test_diagnostics_of_a_single_operation(operation: str) -> None:
    d = trained(operations=(operation,)).diagnostics()
    assert (d.angle_change > 1) == (operation == "bone_angle")
    assert (d.length_change > 0.01) == (operation == "bone_length")


def test_without_augmented_samples_there_is_no_hardness_ratio() -> None:
    # And not a ratio of 0.
    hook = trained(share=1.0, spread=Spread(depth=(0.01, 0.02), own_view=0))
    diagnostics = hook.diagnostics()
    assert diagnostics.kept_share == 0
    assert diagnostics.hardness_ratio != diagnostics.hardness_ratio


def test_losses_are_tensors_on_the_device() -> None:
    losses = sample("predicted").losses
    values = [*losses.policy, *losses[1:]]
    assert all(isinstance(value, Tensor) and value.dim() == 0 for value in values)


def test_total_loss_is_the_sum_of_its_terms() -> None:
    total, *terms = sample("predicted").losses.policy
    torch.testing.assert_close(total, sum(terms))


@pytest.mark.parametrize("reading", ["losses", "policy"])
def test_looking_before_the_first_batch_says_what_to_do(reading: str) -> None:
    hook = make_hook(make_lifter(), skeleton=None)
    with pytest.raises(PoseAugError, match=r"call hook\.augment\(\.\.\.\) once, or pass skeleton"):
        getattr(hook, reading)


def test_diagnostics_before_the_first_batch_say_what_to_do() -> None:
    with pytest.raises(PoseAugError, match=r"call hook\.augment"):
        make_hook(make_lifter(), skeleton=None).diagnostics()


def test_repr_tells_the_skeleton_and_the_updates() -> None:
    assert repr(sample("predicted")) == "PoseAugHook(skeleton=h36m_16, updates=3, enabled=True)"


# -- the monitor -----------------------------------------------------------------------------------


def monitor_with(times: int = 10, skipped: float = 0.0, **readings: float) -> Monitor:
    """A monitor that was told the same over and over."""
    monitor = Monitor()
    for _ in range(times):
        monitor.record(
            unusable=torch.tensor(2),
            skipped=torch.tensor(skipped),
            **{name: torch.tensor(value) for name, value in readings.items()},
        )
    return monitor


FINE = {
    "hardness_ratio": 2.0,
    "guessing_ratio": 0.3,
    "predictor_r_squared": 0.8,
    "accuracy_3d": 0.6,
    "accuracy_2d": 0.6,
    "accuracy_motion": 0.6,
    "kept_share": 0.9,
    "angle_change": 0.1,
    "length_change": 0.1,
    "diversity": 0.9,
}


def test_fine_readings_are_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor_with(**FINE).read(500)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        ({"diversity": 0.1}, r"nearly the same \(0\.10 of .*Lower learning_rate, or start over"),
        ({"kept_share": 0.25}, r"only 25% of .*Check hook\.check_batch.*further away: spread"),
        ({"accuracy_3d": 0.996}, r"tells 100% of the poses apart.*Raise weight_3d"),
        ({"skipped": 20.0}, r"200 updates were left out.*lower learning_rate"),
    ],
)
def test_bad_reading_is_warned_of_with_a_remedy(reading: dict[str, float], words: str) -> None:
    with pytest.warns(PoseAugWarning, match=words) as caught:
        monitor_with(**{**FINE, **reading}).read(500)
    assert len(caught) == 1


def test_bad_reading_is_warned_of_once() -> None:
    monitor = monitor_with(**{**FINE, "diversity": 0.1})
    with pytest.warns(PoseAugWarning):
        monitor.read(500)
    monitor.read(600)


def test_bad_readings_of_the_first_updates_are_not_warned_of() -> None:
    monitor_with(**{**FINE, "diversity": 0.1}).read(99)


def test_remedies_name_options_that_exist() -> None:
    known = {f.name for c in (PoseAugConfig, Spread) for f in fields(c)}
    text = " ".join(remedy for _, remedy in _REMEDIES.values())
    named = set(re.findall(r"\b[a-z]+_[a-z_0-9]+\b", re.sub(r"\{.*?\}", "", text)))
    assert "learning_rate" in named
    assert named - {"check_batch"} <= known


def test_means_of_few_readings_are_plain_means() -> None:
    monitor = Monitor()
    for value in (1.0, 2.0, 6.0):
        monitor.record(torch.tensor(0), torch.tensor(0), diversity=torch.tensor(value))
    assert monitor.read(3).diversity == pytest.approx(3.0)


def test_old_readings_are_forgotten() -> None:
    monitor = monitor_with(200, diversity=1.0)
    for _ in range(300):
        monitor.record(torch.tensor(0), torch.tensor(0), diversity=torch.tensor(2.0))
    assert monitor.read(3).diversity == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_readings_that_are_not_finite_are_left_out(value: float) -> None:
    monitor = Monitor()
    for reading in (1.0, value, 3.0):
        monitor.record(torch.tensor(0), torch.tensor(0), diversity=torch.tensor(reading))
    assert monitor.read(3).diversity == pytest.approx(2.0)


def test_counts_add_up() -> None:
    diagnostics = monitor_with(7, skipped=3.0, **FINE).read(50)
    assert diagnostics.unusable_samples == 14
    assert diagnostics.skipped_steps == 21
    assert diagnostics.updates == 50


def test_unread_values_are_nan() -> None:
    diagnostics = Monitor().read(0)
    assert all(value != value for value in diagnostics[1:9])


@pytest.mark.parametrize(
    ("change", "degrees"), [(0.0, 0.0), (0.5, 60.0), (1.0, 90.0), (2.0, 180.0)]
)
def test_angle_change_is_in_degrees(change: float, degrees: float) -> None:
    read = monitor_with(angle_change=change).read(1)
    assert read.angle_change == pytest.approx(degrees, abs=1e-3)


@pytest.mark.parametrize("change", [-1e-7, 2.0000002])
def test_angle_change_beyond_the_ends_by_rounding(change: float) -> None:
    assert monitor_with(angle_change=change).read(1).angle_change in (0.0, 180.0)


def test_monitor_takes_every_reading_of_the_diagnostics() -> None:
    diagnostics = monitor_with(**FINE).read(50)
    assert set(FINE) == set(Diagnostics._fields[1:11])
    assert not any(value != value for value in diagnostics)


# -- between augment and the update ----------------------------------------------------------------


def test_augment_keeps_no_graph() -> None:
    hook, batch = make_hook(make_lifter()), make_batch()
    hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
    augmented = hook._pending.augmented
    kept = [*augmented, *augmented.draft, *augmented.draft.poses]
    tensors = [value for value in kept if isinstance(value, Tensor)]
    assert len(tensors) > 10
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_policys_statistics_move_once_per_update() -> None:
    estimator = make_lifter()
    hook = make_hook(estimator, preset="released", total_updates=100)
    optimizer = torch.optim.SGD(estimator.parameters(), lr=1e-3)
    batch = make_batch()
    before = {name: b.clone() for name, b in hook.policy.named_buffers()}
    for _ in range(2):  # as with accumulated gradients: two batches, one step
        made_2d, made_3d = hook.augment(batch.inputs_2d, batch.inputs_3d, batch.camera)
        mpjpe(estimator(made_2d), made_3d).backward()
    assert all(torch.equal(b, before[name]) for name, b in hook.policy.named_buffers())
    optimizer.step()
    counts = [b for name, b in hook.policy.named_buffers() if name.endswith("batches_tracked")]
    assert len(counts) > 0
    assert all(count == 1 for count in counts)
