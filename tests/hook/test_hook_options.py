"""An option is refused in the user's terms where its value is nonsense or has no effect.

Options that do not exist (any more) are Python's own TypeError: an editor completes those that do.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from loops import PUBLISHED, adam, all_finite, make_batch, make_hook, make_lifter, stream, train
from torch import Tensor, nn

from poseaug_plugin import (
    AugmentationPolicy,
    Policy,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    PoseSource,
    RandomPolicy,
    Spread,
)
from poseaug_plugin.augment.transforms import AugmentationParameters, identity_parameters
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.reference.recipes import Paper, Ramp, Released
from poseaug_plugin.reference.regressors import RegressorPolicy

SIGNATURE = inspect.signature(PoseAugHook.__init__).parameters
OPTIONS = [name for name in SIGNATURE if name != "self"]
TOTAL = {"total_updates": 20}

ODD = {"-1": -1, "0": 0, "NaN": math.nan, "Inf": math.inf, "text": "x", "None": None, "True": True}
each_odd = pytest.mark.parametrize("odd", ODD)


def trains(estimator: nn.Module | None = None, **options: Any) -> None:
    """Two steps of a training that leave everything finite."""
    estimator = estimator or make_lifter()
    hook = make_hook(estimator, **options)
    train(hook, estimator, adam(estimator), stream(2))
    assert hook.diagnostics().skipped_steps == 0
    assert all_finite(hook)
    assert all(p.isfinite().all() for p in estimator.parameters())
    assert all(p.isfinite().all() for p in hook.policy.parameters())


def refused_or_trains(make: Any, estimator: nn.Module | None = None) -> bool:
    """Whether the options that ``make`` gives were refused at construction."""
    try:
        options = make()
        make_hook(estimator or make_lifter(), **options)
    except PoseAugError:
        return True
    trains(estimator, **options)
    return False


# -- every option, with odd values -----------------------------------------------------------------

# What of them is fine; everything else has to be refused.
FINE: dict[str, set[str]] = {
    "estimator": set(),
    "optimizer": {"None"},
    "skeleton": {"None"},
    "adapter": {"None"},
    "preset": set(),
    "source": {"None"},
    "policy": {"None"},
    "seed": {"-1", "0"},
    "auto_step": {"True"},
    "spread": {"None"},
    "operations": {"None"},
    "mix": set(),
    "share": {"None", "0"},
    "critic_weight": {"None", "0"},
    "entropy_weight": {"None", "0"},
    "feedback": {"None", "True"},
    "total_updates": {"None"},
    "target_2d": {"None"},
    "target_camera": {"None"},
    "cuda_graphs": {"True"},
}


def test_table_has_every_option() -> None:
    assert set(FINE) == set(OPTIONS)


@pytest.mark.filterwarnings("ignore:.*took skeleton")
@each_odd
@pytest.mark.parametrize("option", OPTIONS)
def test_odd_value_is_refused_or_works(option: str, odd: str) -> None:
    estimator = make_lifter()
    if option == "estimator":
        with pytest.raises(PoseAugError, match=r"must be a torch\.nn\.Module"):
            PoseAugHook(ODD[odd], skeleton="h36m_16")  # type: ignore[arg-type]
        return
    refused = refused_or_trains(lambda: {option: ODD[odd]}, estimator)
    assert refused == (odd not in FINE[option])


@pytest.mark.parametrize(
    "preset", [Paper(**PUBLISHED), Released(**PUBLISHED)], ids=lambda p: p.name
)
@each_odd
@pytest.mark.parametrize("option", ["policy", "operations", "share", "total_updates"])
def test_odd_value_is_refused_or_works_in_the_published_presets(
    option: str, odd: str, preset: Any
) -> None:
    refused = refused_or_trains(lambda: {"preset": preset, **TOTAL, option: ODD[odd]})
    fine = {"share": {"None", "0"}, "total_updates": set()}.get(option, {"None"})
    assert refused == (odd not in fine)


@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01, "half", [0.5], torch.tensor(0.5)])
def test_share_is_refused_in_the_users_terms(value: Any) -> None:
    with pytest.raises(PoseAugError, match=r"^share must be a number from 0 to 1, got "):
        make_hook(make_lifter(), share=value)


@pytest.mark.parametrize("value", [0, 1.5, -3, True, "many", 2**60])
def test_total_updates_are_refused_in_the_users_terms(value: Any) -> None:
    with pytest.raises(PoseAugError, match=r"^total_updates must be a whole number"):
        make_hook(make_lifter(), preset="paper", total_updates=value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix": "both"}, r"^mix must be one of replace, append, got 'both'"),
        ({"preset": "papers"}, r"^preset must be one of default, random, paper, released"),
        ({"preset": Paper, **TOTAL}, r"^preset must be .* with arguments, got <class"),
        ({"operations": ("rigid", "scale")}, r"^operations must be .*'bone_angle'.*got .*'scale'"),
        ({"operations": "rigid"}, r"^operations must be a tuple"),
        ({"policy": nn.Linear(2, 2)}, r"^policy must be a poseaug_plugin\.Policy, got Linear"),
        ({"spread": {"pitch": 0.3}}, r"^spread must be a Spread\(pitch=\.\.\., \.\.\.\)"),
        ({"source": [torch.zeros(9, 16, 3)]}, r"^source must be a PoseSource, got list"),
        ({"skeleton": "h36m"}, r"^skeleton must be a Skeleton or one of h36m_16, .* got 'h36m'"),
        ({"feedback": "estimator"}, r"^feedback must be True or False, got 'estimator'"),
        ({"seed": 0.5}, r"^seed must be a whole number"),
    ],
)
def test_message_says_expected_and_received(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PoseAugError, match=words):
        make_hook(make_lifter(), **options)


# -- the objects that options take -----------------------------------------------------------------


@each_odd
@pytest.mark.parametrize("width", [field.name for field in fields(Spread)])
def test_odd_width_of_a_spread_is_refused_or_works(width: str, odd: str) -> None:
    value = (ODD[odd], 1.5) if width == "depth" else ODD[odd]
    refused = refused_or_trains(lambda: {"spread": Spread(**{width: value})})
    assert refused == (odd != "0" or width == "depth")


@pytest.mark.parametrize("depth", [0.7, (0.7,), (0.7, 1.0, 1.5), (1.5, 0.7), "ab", None, (1, "x")])
def test_depth_of_a_spread_that_is_no_pair_of_factors(depth: Any) -> None:
    with pytest.raises(PoseAugError, match=r"^Spread: .*depth must be"):
        Spread(depth=depth)


@pytest.mark.parametrize("width", ["pitch", "keep_view", "bone_length", "torso_length"])
def test_spread_names_itself_and_the_width(width: str) -> None:
    with pytest.raises(PoseAugError, match=rf"^Spread: {width} must be a number.*got -1"):
        Spread(**{width: -1})


def fine_for_published(name: str, odd: str) -> bool:
    if odd == "0":
        return name not in ("width", "kcs")
    return False


@pytest.mark.parametrize("preset", [Paper, Released])
@each_odd
@pytest.mark.parametrize("argument", [field.name for field in fields(Paper)])
def test_odd_argument_of_a_published_preset_is_refused_or_works(
    argument: str, odd: str, preset: Any
) -> None:
    arguments = {**PUBLISHED, argument: ODD[odd]}
    refused = refused_or_trains(lambda: {"preset": preset(**arguments), **TOTAL})
    assert refused != fine_for_published(argument, odd)


@pytest.mark.parametrize("hardness", [Ramp(1.0, 2.0), 3, 0.5])
def test_hardness_is_a_number_or_a_ramp(hardness: Any) -> None:
    trains(preset=Paper(**PUBLISHED, moved_hardness=hardness), **TOTAL)


@pytest.mark.parametrize(
    "hardness", [(1.0, 2.0), Ramp(1.0, math.nan), Ramp("a", "b"), [1, 2], Ramp(-1, 2)]
)
def test_other_hardness_is_refused(hardness: Any) -> None:
    with pytest.raises(
        PoseAugError, match=r"^moved_hardness, a number or Ramp\(start, end\), must be"
    ):
        Paper(moved_hardness=hardness)


@each_odd
@pytest.mark.parametrize("argument", [field.name for field in fields(PoseAdapter)])
def test_odd_argument_of_the_adapter_is_refused(argument: str, odd: str) -> None:
    with pytest.raises(PoseAugError, match=rf"^PoseAdapter: {argument} must be"):
        PoseAdapter(**{argument: ODD[odd]})


@pytest.mark.filterwarnings("ignore:PoseAugHook. source looks wrong")  # it is very small
@each_odd
@pytest.mark.parametrize("argument", ["causal", "flip"])
def test_odd_flag_of_a_source_is_refused_or_works(argument: str, odd: str) -> None:
    sequences, camera = [make_batch(1, frames=9).inputs_3d[0]], make_batch().camera[0]
    options = lambda: {"source": PoseSource(sequences, camera, **{argument: ODD[odd]})}  # noqa: E731
    assert refused_or_trains(options) == (odd != "True")


# -- options without effect ------------------------------------------------------------------------


class Fixed(Policy):
    """A policy of one's own with nothing to learn, which does nothing."""

    noise_size = 3

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        return identity_parameters(joints, H36M_16)


class FixedWithStrength(Fixed):
    """One that calls something of its own a strength."""

    strength = 3.0


class Learning(Fixed):
    """One that learns, and tells no entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.lean = nn.Parameter(torch.zeros(()))

    def forward(self, joints: Tensor, noise: Tensor) -> AugmentationParameters:
        parameters = super().forward(joints, noise)
        offset = parameters.bone_direction_offset + self.lean * noise[:, None, None]
        return parameters._replace(bone_direction_offset=offset)


class LearningWithStrength(Learning):
    """One that learns, and calls something of its own a strength."""

    strength = 3.0


def frozen() -> AugmentationPolicy:
    return AugmentationPolicy("h36m_16").requires_grad_(False)


def learned() -> AugmentationPolicy:
    return AugmentationPolicy("h36m_16")


PUBLISHED_PRESETS = ("paper", "released")
VALUES: dict[str, Any] = {
    "policy": learned,
    "spread": Spread,
    "operations": lambda: ("rigid",),
    "share": lambda: 0.5,
    "critic_weight": lambda: 0.3,
    "entropy_weight": lambda: 0.3,
    "feedback": lambda: True,
    "total_updates": lambda: 20,
}
# By preset, the options that it does not read.
UNREAD = {
    "default": ("total_updates",),
    "random": ("policy", "critic_weight", "entropy_weight", "feedback", "total_updates"),
    **dict.fromkeys(PUBLISHED_PRESETS, ("spread", "critic_weight", "entropy_weight", "feedback")),
}


@pytest.mark.parametrize(
    ("preset", "option"), [(preset, option) for preset, names in UNREAD.items() for option in names]
)
def test_option_that_the_preset_does_not_read_is_refused(preset: str, option: str) -> None:
    options = {"preset": preset, option: VALUES[option]()}
    if preset in PUBLISHED_PRESETS:
        options |= TOTAL
    with pytest.raises(PoseAugError, match=rf"^{option} has no effect with preset='{preset}'"):
        make_hook(make_lifter(), **options)


@pytest.mark.parametrize(
    "off", [{"critic_weight": 0}, {"entropy_weight": 0.0}, {"feedback": False}]
)
def test_even_switched_off_it_is_refused(off: dict[str, Any]) -> None:
    with pytest.raises(PoseAugError, match=r"has no effect with preset='random'"):
        make_hook(make_lifter(), preset="random", **off)


@pytest.mark.parametrize(
    ("preset", "option"),
    [
        (preset, option)
        for preset, unread in UNREAD.items()
        for option in VALUES
        if option not in unread
    ],
)
def test_option_that_the_preset_reads_is_taken(preset: str, option: str) -> None:
    options = {"preset": preset, **(TOTAL if preset in PUBLISHED_PRESETS else {})}
    trains(**{**options, option: VALUES[option]()})


@pytest.mark.parametrize("preset", ["default", "random", *PUBLISHED_PRESETS])
def test_share_of_an_appended_copy_is_refused(preset: str) -> None:
    total = TOTAL if preset in PUBLISHED_PRESETS else {}
    with pytest.raises(PoseAugError, match=r"^share has no effect with mix='append'"):
        make_hook(make_lifter(), preset=preset, mix="append", share=0.1, **total)


NO_EFFECT: dict[str, tuple[Any, dict[str, Any]]] = {
    "spread": (learned, {"spread": Spread()}),
    "operations": (learned, {"operations": ("rigid",)}),
    "operations, nothing learned": (Fixed, {"operations": ("rigid",)}),
    "critics of what cannot learn": (Fixed, {"critic_weight": 0.3}),
    "critics of random draws": (lambda: RandomPolicy("h36m_16"), {"critic_weight": 0.3}),
    "critics of a frozen policy": (frozen, {"critic_weight": 0.3}),
    "entropy that nobody tells": (Learning, {"entropy_weight": 0.3}),
    "entropy of a regressor": (lambda: RegressorPolicy("h36m_16"), {"entropy_weight": 0.3}),
    "entropy of a frozen policy": (frozen, {"entropy_weight": 0.3}),
    "feedback of a policy of one's own": (Learning, {"feedback": True}),
    "feedback of a regressor": (lambda: RegressorPolicy("h36m_16"), {"feedback": False}),
    "feedback of a frozen policy": (frozen, {"feedback": True}),
    "another strength": (FixedWithStrength, {"feedback": True}),
    "another strength, learned": (LearningWithStrength, {"feedback": True}),
}


@pytest.mark.parametrize("kind", NO_EFFECT)
def test_option_without_effect_on_ones_own_policy_is_refused(kind: str) -> None:
    policy, options = NO_EFFECT[kind]
    (option,) = options
    with pytest.raises(PoseAugError, match=rf"^{option} has no effect with .*; leave it out\.$"):
        make_hook(make_lifter(), policy=policy(), **options)


@pytest.mark.parametrize(
    "policy", [Fixed, FixedWithStrength, Learning, LearningWithStrength, frozen, learned]
)
def test_policy_of_ones_own_trains_without_them(policy: Any) -> None:
    trains(policy=policy())


def test_optimizer_that_nothing_is_done_with_is_refused() -> None:
    estimator = make_lifter()
    with pytest.raises(PoseAugError, match=r"^optimizer has no effect with auto_step=False"):
        make_hook(estimator, adam(estimator), auto_step=False)


@pytest.mark.parametrize("preset", [*PUBLISHED_PRESETS, Paper(), Released()])
def test_published_presets_need_the_length_of_the_training(preset: Any) -> None:
    with pytest.raises(PoseAugError, match=r"pass total_updates=epochs \* batches_per_epoch"):
        make_hook(make_lifter(), preset=preset)


# -- what an outside reading found to be taken in silence ------------------------------------------

# Of the first version; none of these exists any more.
GONE = {
    "feedback_limit": 0.3,
    "shared_extractor": True,
    "weight_3d": 9,
    "angle_range": 0.3,
    "max_gradient_norm": -1,
    "pool_swap_probability": 7,
    "warmup": 0.2,
}


@pytest.mark.parametrize("option", GONE)
@pytest.mark.parametrize("preset", ["default", "random", *PUBLISHED_PRESETS])
def test_option_that_is_gone_is_no_argument(option: str, preset: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        make_hook(make_lifter(), preset=preset, **{option: GONE[option]})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {"mix": "append", "share": 0.1}, "^share has no effect with mix='append'"),
        (lambda: {"preset": "random", "critic_weight": 9}, "^critic_weight has no effect"),
        (lambda: {"critic_weight": -5}, "^critic_weight must be a number from 0 to"),
        (lambda: {"preset": Paper(weight_3d=-5)}, "^weight_3d must be a number from 0 to"),
        (lambda: {"spread": Spread(pitch=-1)}, "^Spread: pitch must be a number"),
        (lambda: {"preset": Released(pool_capacity=-1)}, "^pool_capacity must be a whole number"),
        (lambda: {"preset": Paper(warmup=1.2)}, "^warmup must be a number from 0 to 1"),
    ],
)
def test_what_stands_in_its_place_is_refused(make: Any, words: str) -> None:
    with pytest.raises(PoseAugError, match=words):
        make_hook(make_lifter(), **make())
