"""Every option of the method, and the presets as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

from .curriculum import Ramp
from .errors import PoseAugError
from .losses import ErrorKind
from .policy import OPERATIONS, Operation, Spread, check_operations

_TWICE = Ramp(2.0, 2.0)


# `bool` is an `Integral` and a `Real` too, and is taken for neither.
_NUMBERS = {int: (Integral, "a whole number"), float: (Real, "a number")}


def _check_kind(name: str, value: object, hint: Any) -> None:  # noqa: ANN401
    """Refuse what is none of an option's choices, or of another kind."""
    choices = get_args(hint)
    if choices and all(isinstance(c, str) for c in choices) and value not in choices:
        raise PoseAugError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    if type(None) in choices:
        if value is None:
            return
        hint = choices[0]
    if hint in _NUMBERS:
        kind, words = _NUMBERS[hint]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PoseAugError(f"{name} must be {words}, got {value!r}.")
    elif hint is Spread and not isinstance(value, Spread):
        raise PoseAugError(f"{name} must be a Spread(pitch=..., ...), got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class PoseAugConfig:
    """Options of `PoseAugHook`. The defaults are the ``default`` preset.

    Attributes:
        augmentor: ``"learned"`` (`AugmentationPolicy`: random draws with learned spreads),
            ``"regressors"`` (`RegressorPolicy`: PoseAug's own) or ``"random"`` (`RandomPolicy`:
            nothing is trained, and nothing adversarial is built).
        spread: How widely random draws are made; in the beginning, where that is learned.
        operations: Which of bone_angle, bone_length, rigid, focal_length are done.
        placement: Where augmented poses stand: where poses of the ``"batch"`` do, or so that they
            are seen like the hook's ``"real_poses_2d"``, as large and with the root there. For
            adaptation to a camera set-up of which only 2D is known.
        fixed_trunk: Trunk bones stay unbent, the anchor length stays (released code).
        shared_extractor: With ``"regressors"``: one feature extractor for all of them (paper).
        width: Hidden width of regressors and 3D critic.
        mix: ``"replace"`` a share of the batch, or ``"append"`` an augmented copy of all of it.
        share: Share of the batch that is replaced.
        feedback: Which error the policy hears about: ``"none"``, the one ``"predicted"`` from
            watching the user's own forward pass, or the ``"estimator"``'s in isolated passes.
            Neither gained anything where it was measured, and small estimators lost by it
            (docs/experiments.md, section 17).
        feedback_loss: ``"limit"`` (ours: no harder than ``feedback_limit``), ``"paper"``
            (equation 3) or ``"released"`` (dead zone).
        feedback_limit: For ``"limit"``: the estimator's error on augmented poses, at most, as a
            share of that of answering with their mean pose; 1 is an estimator that sees nothing.
        error: The estimator's error L_P that feedback compares.
        bent_weight: Weight of the feedback on bent poses, put where the originals stood.
        moved_weight: Weight of the feedback on fully augmented poses.
        bent_hardness: Target of error(bent) / error(clean); a number, or a `Ramp`. For ``"paper"``
            and ``"released"``, like the next three.
        moved_hardness: Target of error(moved) / error(clean); likewise.
        bent_tolerance: Half-width of the released loss's dead zone.
        moved_tolerance: Likewise.
        estimator_mode: In isolated passes, dropout off and BatchNorm ``"frozen"``, or
            ``"as_found"``.
        warmup: Share of the training without feedback.
        weight_3d: Weight of the 3D critic in the policy's loss.
        weight_2d: Weight of the 2D critic.
        weight_motion: Weight of the motion critic, which judges windows of three frames or more.
        both_sided: Report the adversarial loss with the real half (released; same gradient).
        kcs: Part-aware (``"parts"``) or ``"whole"``-body KCS critic.
        update_batch: Augmented poses of a batch that policy and critics learn from, at most, and
            poses of either kind that the predictor does, so that a larger batch costs no larger
            update; None for all.
        policy_interval: The policy learns at the last of every n updates.
        critic_interval: Critics learn at the first of every n updates. With both at 2 they take
            turns with the policy, which is cheaper and learns less.
        pool_capacity: Generated poses kept for the critics.
        pool_swap_probability: Share of them exchanged.
        range_penalty: ``"released"`` (two-sided on angles, per length ratio) or ``"paper"``
            (rectified means, equation 4).
        range_weight: Its weight.
        angle_range: Centre and half-width of the free range of the mean of 1 - cos(bone angle);
            the paper form uses the centre as its threshold.
        length_limit: Length ratios below it are free.
        entropy_weight: How much wider draws are worth: the policy widens the spreads of its base,
            up to the default ones, until critics or feedback object.
        frame_weight: Weight of a penalty on keypoints outside the frame.
        frame_check: Which poses in front of the camera get out: those within ``"four_sides"`` of
            the frame, or, as ``"released"``, with just no 2D coordinate above 1.
        clamp_rays: Cut projected rays to [-1, 1] (released).
        aspect_ratio: Image height / width.
        learning_rate: Of policy and critics.
        predictor_learning_rate: Of the hardness predictor.
        decay_learning_rate: Linearly to zero over ``total_updates``.
        max_gradient_norm: Clipping of each of the hook's own networks.
        cuda_graphs: On a GPU, record the hook's own work in CUDA graphs. Off for a policy of one's
            own, which may do what cannot be recorded.
        compile: Compile that work with `torch.compile`, into fewer kernels. Takes a minute at the
            start, and again for batches of another size; no gain on a CPU (docs/performance.md).
        total_updates: Optimizer steps of the whole training; needed by ramps, warm-up and decay.
    """

    augmentor: Literal["learned", "regressors", "random"] = "learned"
    spread: Spread = field(default_factory=Spread)
    operations: tuple[Operation, ...] = OPERATIONS
    placement: Literal["batch", "real_poses_2d"] = "batch"
    fixed_trunk: bool = False
    shared_extractor: bool = False
    width: int = 128
    mix: Literal["replace", "append"] = "replace"
    share: float = 0.75
    feedback: Literal["none", "predicted", "estimator"] = "none"
    feedback_loss: Literal["limit", "paper", "released"] = "limit"
    feedback_limit: float = 0.6
    error: ErrorKind = "mpjpe"
    bent_weight: float = 0.0
    moved_weight: float = 1.0
    bent_hardness: Ramp = _TWICE
    moved_hardness: Ramp = _TWICE
    bent_tolerance: float = 0.0
    moved_tolerance: float = 0.0
    estimator_mode: Literal["frozen", "as_found"] = "frozen"
    warmup: float = 0.0
    weight_3d: float = 0.1
    weight_2d: float = 0.1
    weight_motion: float = 0.1
    both_sided: bool = False
    kcs: Literal["parts", "whole"] = "parts"
    update_batch: int | None = 512
    policy_interval: int = 1
    critic_interval: int = 2
    pool_capacity: int = 4096
    pool_swap_probability: float = 0.5
    range_penalty: Literal["released", "paper"] = "paper"
    range_weight: float = 3.0
    angle_range: tuple[float, float] = (0.205, 0.165)
    length_limit: float = 0.15
    entropy_weight: float = 0.05
    frame_weight: float = 1.0
    frame_check: Literal["four_sides", "released"] = "four_sides"
    clamp_rays: bool = False
    aspect_ratio: float = 1.0
    learning_rate: float = 1e-4
    predictor_learning_rate: float = 1e-3
    decay_learning_rate: bool = False
    max_gradient_norm: float = 1.0
    cuda_graphs: bool = True
    compile: bool = False
    total_updates: int | None = None

    @property
    def scheduled(self) -> tuple[str, ...]:
        """The options in use whose values change over the training."""
        used = {
            "bent_hardness": self.bent_weight and len(set(self.bent_hardness)) > 1,
            "moved_hardness": self.moved_weight and len(set(self.moved_hardness)) > 1,
            "warmup": self.warmup > 0,
        }
        return tuple(name for name, is_used in used.items() if is_used)

    def __post_init__(self) -> None:
        check_operations(self.operations)
        for name in ("bent_hardness", "moved_hardness"):
            value = getattr(self, name)
            ends = (value, value) if isinstance(value, (int, float)) else value
            if not isinstance(ends, tuple) or len(ends) != 2:
                raise PoseAugError(f"{name} must be a number, or Ramp(start, end), got {value!r}.")
            object.__setattr__(self, name, Ramp(*ends))
        hints = get_type_hints(PoseAugConfig)
        for option in fields(self):
            _check_kind(option.name, getattr(self, option.name), hints[option.name])
        if self.update_batch is not None and self.update_batch < 1:
            raise PoseAugError(
                f"update_batch must be positive, or None for all, got {self.update_batch!r}."
            )
        for name in ("feedback_limit", "aspect_ratio"):
            if not getattr(self, name) > 0:
                raise PoseAugError(f"{name} must be positive, got {getattr(self, name)!r}.")
        for name, low, high in (
            ("width", 1, 10**9),
            ("share", 0.0, 1.0),
            ("warmup", 0.0, 1.0),
            ("policy_interval", 1, 10**9),
            ("critic_interval", 1, 10**9),
            ("pool_capacity", 0, 10**9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise PoseAugError(f"{name} must lie in [{low}, {high}], got {value!r}.")


DEFAULT = PoseAugConfig()
"""What wins the library's own benchmark (docs/results.md)."""

RELEASED = PoseAugConfig(
    share=0.5,
    augmentor="regressors",
    width=256,
    fixed_trunk=True,
    feedback="estimator",
    feedback_loss="released",
    error="grouped",
    bent_weight=0.1,
    moved_weight=0.01,
    bent_hardness=Ramp(3.0, 5.0),
    moved_hardness=Ramp(17.0, 17.0),
    bent_tolerance=2.0,
    moved_tolerance=15.0,
    estimator_mode="as_found",
    warmup=0.04,
    weight_3d=6.0,
    weight_2d=1.0,
    weight_motion=0.0,
    update_batch=None,
    both_sided=True,
    range_penalty="released",
    length_limit=0.1,
    entropy_weight=0.0,
    frame_weight=0.0,
    frame_check="released",
    clamp_rays=True,
    decay_learning_rate=True,
)
"""The released code (docs/presets.md lists the rows)."""

PAPER = PoseAugConfig(
    share=0.5,
    clamp_rays=True,
    augmentor="regressors",
    width=256,
    shared_extractor=True,
    feedback="estimator",
    feedback_loss="paper",
    error="squared_norm",
    moved_weight=1.0,
    moved_hardness=Ramp(3.0, 5.0),
    warmup=0.04,
    weight_3d=1.0,
    weight_2d=1.0,
    weight_motion=0.0,
    update_batch=None,
    range_penalty="paper",
    range_weight=1.0,
    length_limit=0.1,
    entropy_weight=0.0,
    frame_weight=0.0,
    decay_learning_rate=True,
)
"""The paper's formulas."""

RANDOM = PoseAugConfig(augmentor="random")
"""`RandomPolicy` alone: the baseline to beat."""

PRESETS: dict[str, PoseAugConfig] = {
    "default": DEFAULT,
    "paper": PAPER,
    "released": RELEASED,
    "random": RANDOM,
}


def find_config(preset: str | PoseAugConfig, options: dict[str, Any]) -> PoseAugConfig:
    """A preset with some options changed.

    Raises:
        PoseAugError: An unknown preset or option, or a value out of range.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise PoseAugError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    config = PRESETS[preset] if isinstance(preset, str) else preset
    known = {option.name for option in fields(PoseAugConfig)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise PoseAugError(
            f"unknown option {', '.join(unknown)}; there are: {', '.join(sorted(known))}."
        )
    config = replace(config, **options)
    _check_schedule(config)
    return config


def _check_schedule(config: PoseAugConfig) -> None:
    timed = config.scheduled + ("decay_learning_rate",) * config.decay_learning_rate
    if config.augmentor != "random" and timed and not config.total_updates:
        raise PoseAugError(
            f"{', '.join(timed)} change over the training: pass "
            "total_updates=epochs * batches_per_epoch."
        )
