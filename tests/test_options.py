"""Options: what is refused, what has no effect, and the trainings that presets make of them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from loops import adam, make_batch, make_lifter, stream, train
from torch import nn

from poseaug_plugin import (
    AugmentationPolicy,
    PoseAdapter,
    PoseAugError,
    PoseAugHook,
    RandomPolicy,
    Spread,
)
from poseaug_plugin.adversary.critics import range_term
from poseaug_plugin.body.presets import H36M_16
from poseaug_plugin.options import (
    DefaultPreset,
    Options,
    Preset,
    RandomPreset,
    Surroundings,
    Training,
)
from poseaug_plugin.reference.recipes import Paper, Released
from poseaug_plugin.reference.regressors import RegressorPolicy


def hook_with(**options: Any) -> PoseAugHook:
    return PoseAugHook(make_lifter(), **{"skeleton": "h36m_16", **options})


def built(preset: Preset, **options: Any) -> Training:
    generator = torch.Generator()
    surroundings = Surroundings(nn.Identity(), PoseAdapter(), H36M_16, generator)
    return preset.build(Options(**options), surroundings)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"share": "0.5"}, "share must be a number from 0 to 1, got '0.5'"),
        ({"share": True}, "share must be a number from 0 to 1, got True"),
        ({"share": -0.1}, "share must be a number from 0 to 1, got -0.1"),
        ({"share": 1.1}, "share must be a number from 0 to 1, got 1.1"),
        ({"share": math.nan}, "share must be a number from 0 to 1, got nan"),
        ({"critic_weight": -1}, "critic_weight must be a number from 0 to 1000, got -1"),
        ({"critic_weight": math.inf}, "critic_weight must be a number from 0 to 1000, got inf"),
        ({"entropy_weight": [1]}, r"entropy_weight must be a number from 0 to 1000, got \[1\]"),
        ({"total_updates": 2.5}, "total_updates must be a whole number .*, got 2.5"),
        ({"total_updates": 0}, "total_updates must be a whole number from 1 .*, got 0"),
        ({"spread": {"pitch": 0.1}}, r"spread must be a Spread\(.*\), got {'pitch'"),
        ({"operations": ("bend",)}, r"operations must be .*bone_angle.*, got \('bend',\)"),
        ({"operations": "rigid"}, "operations must be .*bone_angle.*, got 'rigid'"),
        ({"mix": "prepend"}, "mix must be one of replace, append, got 'prepend'"),
        ({"mix": None}, "mix must be one of replace, append, got None"),
        ({"feedback": 1}, "feedback must be True or False, got 1"),
        ({"cuda_graphs": None}, "cuda_graphs must be True or False, got None"),
        ({"policy": nn.Identity()}, "policy must be a poseaug_plugin.Policy, got Identity"),
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_refused(option: dict[str, Any], problem: str) -> None:
    with pytest.raises(PoseAugError, match=problem):
        Options(**option)
    with pytest.raises(PoseAugError, match=problem):
        hook_with(**option)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"seed": 0.5}, "seed must be a whole number .*, got 0.5"),
        ({"seed": True}, "seed must be a whole number .*, got True"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"auto_step": 0}, "auto_step must be True or False, got 0"),
        ({"preset": "learned"}, "preset must be one of default, random, paper, released"),
        ({"preset": 3}, "preset must be one of .* got 3"),
        ({"source": [1]}, "source must be a PoseSource, got list"),
    ],
    ids=str,
)
def test_what_only_the_hook_reads_is_checked_too(option: dict[str, Any], problem: str) -> None:
    with pytest.raises(PoseAugError, match=problem):
        hook_with(**option)


def test_numbers_of_numpys_are_numbers() -> None:
    options = Options(share=np.float32(0.25), total_updates=np.int64(64))
    assert (options.share, options.total_updates) == (0.25, 64)


def test_options_that_are_left_to_the_preset_are_none() -> None:
    assert {field.name for field in fields(Options) if field.default is not None} == {
        *("mix", "cuda_graphs")
    }


# -- options without effect ------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "policy": AugmentationPolicy("h36m_16"),
    "spread": Spread(),
    "operations": ("rigid",),
    "share": 0.5,
    "critic_weight": 0.1,
    "entropy_weight": 0.05,
    "feedback": True,
    "total_updates": 10,
    "target_2d": torch.rand(80, 16, 2) - 0.5,
}
READ = {
    "default": {
        *("policy", "spread", "operations", "share"),
        *("critic_weight", "entropy_weight", "feedback", "target_2d"),
    },
    "random": {"spread", "operations", "share"},
    "paper": {"policy", "operations", "share", "total_updates"},
    "released": {"policy", "operations", "share", "total_updates"},
}


def test_every_option_that_may_have_no_effect_is_tried() -> None:
    assert set(VALUES) == {field.name for field in fields(Options) if field.default is None}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("preset", READ)
def test_an_option_that_the_preset_does_not_read_is_refused(preset: str, name: str) -> None:
    needed = {"total_updates": 10} if "total_updates" in READ[preset] else {}
    options = {**needed, name: VALUES[name]}
    if name in READ[preset]:
        hook_with(preset=preset, **options)
        return
    with pytest.raises(PoseAugError, match=f"{name} has no effect with preset='{preset}'"):
        hook_with(preset=preset, **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"share": 0.5, "mix": "append"}, "share has no effect with mix='append'"),
        ({"policy": "drawing", "spread": Spread()}, "spread has no effect with a policy"),
        ({"policy": "drawing", "operations": ()}, "operations has no effect with a policy"),
        ({"policy": "drawing", "critic_weight": 1}, "critic_weight .* nothing to learn"),
        ({"policy": "drawing", "entropy_weight": 1}, r"entropy_weight .* no entropy\(\)"),
        ({"policy": "regressors", "entropy_weight": 1}, r"entropy_weight .* no entropy\(\)"),
        ({"policy": "drawing", "feedback": True}, "feedback .* the hook cannot set"),
        ({"policy": "regressors", "feedback": False}, "feedback .* the hook cannot set"),
    ],
    ids=str,
)
def test_an_option_that_another_one_overrules_is_refused(
    options: dict[str, Any], problem: str
) -> None:
    policies = {
        "drawing": RandomPolicy("h36m_16"),
        "regressors": RegressorPolicy("h36m_16", width=8),
    }
    if "policy" in options:
        options = {**options, "policy": policies[options["policy"]]}
    with pytest.raises(PoseAugError, match=f"{problem}.*leave it out"):
        hook_with(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"critic_weight": 1, "entropy_weight": 1, "feedback": True},
        {"critic_weight": 0, "feedback": False, "share": 0.1},
    ],
    ids=str,
)
def test_a_learned_policy_of_ones_own_reads_the_same_options(options: dict[str, Any]) -> None:
    hook_with(policy=AugmentationPolicy("h36m_16"), **options)


@pytest.mark.parametrize("preset", ["paper", "released", Paper(), Released()], ids=str)
def test_what_changes_over_the_training_needs_its_length(preset: str | Preset) -> None:
    with pytest.raises(PoseAugError, match=r"pass total_updates=epochs \* batches_per_epoch"):
        hook_with(preset=preset)


# -- what is built ---------------------------------------------------------------------------------


def parts_of(hook: PoseAugHook) -> set[str]:
    """What has state."""
    return {name.split(".")[0] for name in hook.state_dict()["training"]["modules"]}


EVERYTHING = {
    *("policy", "policy_optimizer", "monitor", "controller"),
    *("critic_3d", "critic_3d_optimizer", "critic_3d_pool"),
    *("critic_2d", "critic_2d_optimizer", "critic_2d_pool"),
}


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_the_default_has_two_critics_whatever_the_window(frames: int) -> None:
    estimator = make_lifter(frames=frames)
    hook = PoseAugHook(estimator, skeleton="h36m_16")
    assert parts_of(hook) == EVERYTHING
    train(hook, estimator, adam(estimator), stream(2, frames=frames))
    assert parts_of(hook) == EVERYTHING
    assert set(hook.diagnostics().critic_accuracy) == {"critic_3d", "critic_2d"}


@pytest.mark.parametrize(
    ("options", "parts", "losses"),
    [
        ({"preset": "random"}, {"monitor"}, set()),
        (
            {"critic_weight": 0},
            {"policy", "policy_optimizer", "monitor", "controller"},
            {"policy", "policy/range", "policy/frame", "policy/entropy"},
        ),
        (
            {"critic_weight": 0, "feedback": False},
            {"policy", "policy_optimizer", "monitor"},
            {"policy", "policy/range", "policy/frame", "policy/entropy"},
        ),
        ({"policy": RandomPolicy("h36m_16")}, {"monitor"}, set()),
        *(
            (
                {"preset": preset, "total_updates": 9, "policy": RandomPolicy("h36m_16")},
                {"monitor"},
                set(),
            )
            for preset in ("paper", "released")
        ),
    ],
    ids=str,
)
def test_nothing_adversarial_is_built_where_it_is_not_used(
    options: dict[str, Any], parts: set[str], losses: set[str]
) -> None:
    estimator = make_lifter()
    hook = PoseAugHook(estimator, skeleton="h36m_16", **options)
    train(hook, estimator, adam(estimator), stream(2))
    assert parts_of(hook) == parts
    assert set(hook.losses) == losses
    assert hook.diagnostics().critic_accuracy == {}
    assert hook._trainer.pools == {}  # type: ignore[union-attr]


def test_default_weights() -> None:
    training = built(DefaultPreset())
    assert [critic.name for critic in training.critics] == ["critic_3d", "critic_2d"]
    assert [critic.weight for critic in training.critics] == [0.1, 0.1]
    assert training.interval == 8
    assert [critic.interval for critic in training.critics] == [1, 1]
    terms = training.terms
    assert terms is not None
    assert set(terms) == {"critic_3d", "critic_2d", "range", "frame", "entropy"}
    assert terms["range"] is range_term
    assert terms["entropy"].keywords["weight"] == 0.05  # type: ignore[attr-defined]
    assert training.learn_from == 128
    assert training.pool_capacity == 1024
    assert DefaultPreset().share == RandomPreset().share == 0.75


def test_weights_that_were_given() -> None:
    training = built(DefaultPreset(), critic_weight=2.5, entropy_weight=0.5)
    assert [critic.weight for critic in training.critics] == [2.5, 2.5]
    terms: Any = training.terms
    assert terms["entropy"].keywords["weight"] == 0.5
    assert terms["critic_3d"].keywords["critic"] is training.critics[0]


@pytest.mark.parametrize("preset", [DefaultPreset(), RandomPreset()], ids=["default", "random"])
def test_spread_and_operations_reach_the_policy(preset: Preset) -> None:
    spread = Spread(pitch=0.1)
    policy = built(preset, spread=spread, operations=("rigid",)).policy
    base = getattr(policy, "base", policy)
    assert isinstance(base, RandomPolicy)
    assert (base.spread, base.operations) == (spread, ("rigid",))


def test_policies_of_ones_own_are_trained_by_what_they_have() -> None:
    policy = RegressorPolicy("h36m_16", width=8)
    training = built(DefaultPreset(), policy=policy)
    assert training.policy is policy
    assert training.controller is None  # it has no strength
    assert len(training.critics) == 2


def test_aspect_ratio_is_the_adapters() -> None:
    hook = hook_with(adapter=PoseAdapter(aspect_ratio=0.5))
    trainer = hook._trainer
    assert trainer is not None
    assert trainer.augmenter.aspect_ratio == 0.5
    camera, inputs_3d, inputs_2d = make_batch(64)
    inputs_2d = hook.augment(inputs_2d, inputs_3d, camera).inputs_2d
    rows = (inputs_2d != make_batch(64).inputs_2d).flatten(1).any(1)
    assert rows.any()
    assert inputs_2d[rows][..., 1].abs().max() <= 0.5


class Own:
    """A preset of one's own."""

    name = "own"
    share = 1.0
    reads = frozenset(("spread",))

    def build(self, options: Options, surroundings: Surroundings) -> Training:
        return Training(RandomPolicy(surroundings.skeleton, spread=options.spread))


def test_a_preset_of_ones_own() -> None:
    hook = hook_with(preset=Own(), spread=Spread(yaw=0.1))
    camera, inputs_3d, inputs_2d = make_batch()
    hook.augment(inputs_2d, inputs_3d, camera)
    assert type(hook.policy) is RandomPolicy
    assert hook._trainer.augmenter.share == 1.0  # type: ignore[union-attr]
    with pytest.raises(PoseAugError, match="share has no effect with preset='own'"):
        hook_with(preset=Own(), share=0.5)
