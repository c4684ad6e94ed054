"""Procedural human motion, for examples without motion capture.

Forward kinematics turns curves of joint angles into the 17 joints of Human3.6M, in metres, z up,
right-handed, 50 frames per second. The feet push the root.

Angles are in degrees: positive is flexion, abduction (away from the body) and inward rotation of a
limb; forward, to the left or down for trunk and head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Curves: TypeAlias = dict[str, Array]  # joint angle -> degrees (T,)
Clip: TypeAlias = Callable[[Array, Generator], Curves]
Motion: TypeAlias = dict[str, dict[str, NDArray[np.float32]]]  # subject -> clip -> (T, 17, 3)

FPS = 50
REACH = 1.0  # metres from the room's centre that the root may go
# 0 Hip, 1-3 right and 4-6 left leg, 7 Spine, 8 Thorax, 9 Nose, 10 Head, then left, right arm
_PARENTS = (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
_MIRRORED = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)

# Limits and rest of each joint. Knees and elbows are hinges: they never bend the other way.
_LIMB = {
    "hip_flex": (-30, 120, 3),
    "hip_abd": (-15, 45, 2),
    "hip_rot": (-35, 35, 0),
    "knee": (0, 145, 5),
    "arm_flex": (-50, 175, 0),
    "arm_abd": (-15, 170, 9),
    "arm_rot": (-90, 80, 10),
    "elbow": (0, 145, 14),
}
_TRUNK = {
    "tilt": (-15, 60, 0),  # of the pelvis
    "roll": (-15, 15, 0),
    "bend": (-20, 60, 0),  # of the spine, its two joints together
    "side": (-30, 30, 0),
    "twist": (-45, 45, 0),
    "nod": (-35, 40, 0),
    "look": (-60, 60, 0),
}
_ANGLES = _TRUNK | {f"{side}_{name}": limits for side in "lr" for name, limits in _LIMB.items()}


def _bones(size: float, legs: float, arms: float, width: float) -> Array:
    """A person standing: metres (17, 3) from parent to joint, x forward, y left, z up."""
    leg = np.array([(0, 0.13 * width, 0), (0, 0, -0.44 * legs), (0, 0, -0.44 * legs)])
    arm = np.array([(0, 0.16 * width, -0.02), (0, 0, -0.27 * arms), (0, 0, -0.25 * arms)])
    trunk = np.array([(0, 0, 0.235), (0, 0, 0.25), (0.06, 0, 0.1), (-0.04, 0, 0.11)])
    root, right = np.zeros((1, 3)), np.array([1, -1, 1])
    return np.concatenate([root, leg * right, leg, trunk, arm, arm * right]) * size


def _rotate(axis: int, degrees: Array) -> Array:
    """Rotation matrices (T, 3, 3) about coordinate axis 0, 1 or 2."""
    turn = np.zeros((len(degrees), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[:, axis, axis] = 1
    turn[:, i, i] = turn[:, j, j] = np.cos(np.radians(degrees))
    turn[:, j, i] = np.sin(np.radians(degrees))
    turn[:, i, j] = -turn[:, j, i]
    return turn


def _kinematics(pose: Curves, bones: Array) -> Array:
    """Joints (T, 17, 3) in metres relative to the hip."""
    pelvis = _rotate(2, pose["yaw"]) @ _rotate(0, -pose["roll"]) @ _rotate(1, pose["tilt"])
    twist, side, bend = (pose[name] / 2 for name in ("twist", "side", "bend"))
    half = _rotate(2, twist) @ _rotate(0, -side) @ _rotate(1, bend)
    chest = pelvis @ half @ half
    head = chest @ _rotate(2, pose["look"]) @ _rotate(1, pose["nod"])
    frames = {0: pelvis, 7: pelvis @ half, 8: chest, 9: head, 10: head}
    for lr, out, hip, shoulder in (("r", -1, 1, 14), ("l", 1, 4, 11)):
        for first, trunk, name, hinge in (
            (hip, pelvis, "hip", pose[f"{lr}_knee"]),  # knees bend backward, elbows forward
            (shoulder, chest, "arm", -pose[f"{lr}_elbow"]),
        ):
            flex, abd, rot = (pose[f"{lr}_{name}_{way}"] for way in ("flex", "abd", "rot"))
            upper = trunk @ _rotate(1, -flex) @ _rotate(0, out * abd) @ _rotate(2, -out * rot)
            frames |= {first: trunk, first + 1: upper, first + 2: upper @ _rotate(1, hinge)}
    joints = np.zeros((len(pelvis), 17, 3))
    for joint in range(1, 17):
        joints[:, joint] = joints[:, _PARENTS[joint]] + frames[joint] @ bones[joint]
    return joints


def _smooth(curve: Array, frames: float) -> Array:
    """Gaussian mean over time of a curve (T, ...), with a standard deviation of ``frames``."""
    reach = int(3 * frames) + 1
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / frames) ** 2)
    padded = np.pad(curve, [(reach, reach)] + [(0, 0)] * (curve.ndim - 1), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis=0)
    return windows @ (weights / weights.sum())


def _stand(joints: Array, lift: Array) -> Array:
    """Put hip-relative joints (T, 17, 3) ``lift`` (T,) metres above the floor, and walk."""
    soles = joints[:, [2, 3, 5, 6]] - [[0, 0, 0.05], [0, 0, 0.08]] * 2  # knees may kneel
    # Weight passes softly from foot to foot: a hard switch would make the root jerk.
    load = np.exp(-100 * (soles[..., 2] - soles[..., 2].min(axis=1, keepdims=True)))
    load = (load / load.sum(axis=1, keepdims=True))[..., None]
    height = lift - _smooth((load * soles).sum(axis=1)[:, 2], 2)
    steps = -(load * np.gradient(soles, axis=0)).sum(axis=1)[:, :2]
    path: Array = np.cumsum(_smooth(steps, 3), axis=0)
    path -= (path.min(axis=0) + path.max(axis=0)) / 2
    # The room is small: a path that would leave it is shrunk, and the feet slide a little.
    path *= min(1, REACH / np.linalg.norm(path, axis=1).max())
    return joints + np.column_stack([path, height])[:, None]


def _sway(time: Array, rng: Generator, degrees: float) -> Array:
    """A slow sway (T,) that does not repeat."""
    rate, phase = rng.uniform(0.1, 0.6, 3), rng.uniform(0, 2 * np.pi, 3)
    waves: Array = np.sin(2 * np.pi * np.outer(time, rate) + phase)
    return 0.6 * degrees * waves.sum(axis=1)


def _bump(phase: Array, sharpness: float) -> Array:
    """From 0 to 1 and back once a turn, 1 at phase 0 (radians)."""
    return ((1 + np.cos(phase)) / 2) ** sharpness


def _gait(time: Array, rng: Generator, turn: float, weave: float = 0, how: str = "") -> Curves:
    """Walk, ``how`` "jog" or "stop", with a ``turn`` in degrees per second, and ``weave``."""
    jog = how == "jog"
    rate, stride, swing = rng.uniform(0.88, 1.12, 3) * ((1.35, 26, 30) if jog else (0.92, 23, 22))
    knee, elbow, lean = (90, 85, 8) if jog else (56, 24, 2)
    go = _smooth(np.clip(0.5 + _sway(time, rng, 2), 0, 1) if how == "stop" else 0 * time + 1, 6)
    left = 2 * np.pi * (np.cumsum(go) * rate / FPS + rng.uniform())
    yaw = turn * rng.uniform(0.9, 1.1) * time + _sway(time, rng, 5)
    yaw = yaw + weave * np.sin(2 * np.pi * (time / 3.2 + rng.uniform()))
    pose = {
        "yaw": yaw,
        "side": 0.07 * np.gradient(yaw, time),  # into the curve
        "tilt": lean * go,
        "roll": 3 * go * np.cos(left),
        "twist": 8 * go * np.sin(left) + _sway(time, rng, 3),
        "look": _sway(time, rng, 15),
        "lift": 0.04 * jog * go * np.sin(left) ** 2,
    }
    for lr, phase in (("l", left), ("r", left + np.pi)):
        # The thigh is foremost at phase pi/2, and on its way back keeps an even pace. The knee
        # gives a little after the heel strikes, and folds to swing the foot through.
        thigh = np.arcsin(0.9 * np.sin(phase)) / np.arcsin(0.9)
        pose[f"{lr}_hip_flex"] = 4 + go * (4 + lean + stride * thigh)
        pose[f"{lr}_knee"] = 5 + go * (knee * _bump(phase + 0.2, 3) + 12 * _bump(phase - 2.2, 4))
        pose[f"{lr}_arm_flex"] = lean - swing * go * np.sin(phase) + _sway(time, rng, 4)
        pose[f"{lr}_arm_rot"] = 15 + _sway(time, rng, 10)
        pose[f"{lr}_elbow"] = 10 + go * (elbow - 10 - 0.5 * swing * np.sin(phase))
    return pose


def _keyed(seconds: float, *poses: str) -> Clip:
    """Repeat a list of key poses, each written as "angle degrees angle degrees ...".

    A name without l_ or r_ stands for both sides. The last mention counts. All else is at rest.
    """
    words = [pose.split() for pose in poses]
    keys = [dict(zip(w[::2], map(float, w[1::2]), strict=True)) for w in words]

    def clip(time: Array, rng: Generator) -> Curves:
        turn = (time / seconds * rng.uniform(0.9, 1.2) + rng.uniform()) * len(keys)
        now, size = turn.astype(int) % len(keys), rng.uniform(0.8, 1.1)
        ease = np.clip(1.5 * (turn % 1) - 0.25, 0, 1)  # each pose is held a little
        ease = ease * ease * (3 - 2 * ease)
        pose = {}
        for name, (_, _, rest) in _ANGLES.items():
            key = np.array([k.get(name, k.get(name[2:], rest)) for k in keys])
            curve = rest + size * ((1 - ease) * key[now] + ease * key[(now + 1) % len(keys)] - rest)
            pose[name] = curve + _sway(time, rng, 3)
        return pose

    return clip


_GUARD = "tilt 8 bend 12 l_hip_flex 40 hip_abd 8 knee 30 arm_flex 35 arm_rot 15 elbow 115 "
_JAB = _GUARD + "l_arm_flex 88 l_elbow 8 twist -30"
_CROSS = _GUARD + "r_arm_flex 88 r_elbow 8 twist 35"
_KNEE_UP = _GUARD + "tilt -8 r_hip_flex 90 r_knee 105 "
_HAND_UP = "r_arm_abd 105 r_arm_rot -85 side 5 "
_SQUAT = "tilt 25 bend 8 knee 100 hip_flex 88 hip_abd 25 hip_rot -25 elbow 65 "
_LEFT_UP = "knee 15 hip_flex 10 hip_abd 12 l_arm_abd 130 r_arm_abd 40 side -14"
_RIGHT_UP = "knee 15 hip_flex 10 hip_abd 12 l_arm_abd 40 r_arm_abd 130 side 14"
_CROUCH = "tilt 35 bend 35 nod -20 knee 125 hip_flex 112 hip_abd 12 arm_flex 55 elbow 30 "

_SOURCE_CLIPS: dict[str, Clip] = {
    "Walking": partial(_gait, turn=60),
    "Circling": partial(_gait, turn=90),
    "Slalom": partial(_gait, turn=0, weave=100),
    "Stopping": partial(_gait, turn=50, how="stop"),
    "Jogging": partial(_gait, turn=115, how="jog"),
    "Gestures": _keyed(4, "", "r_arm_flex 70 r_elbow 40", "arm_flex 30 arm_abd 25 elbow 80"),
}
_TARGET_CLIPS: dict[str, Clip] = {
    "Bowing": _keyed(2.1, "", "tilt 42 bend 42 hip_flex 50 arm_flex 45"),
    "Kicking": _keyed(1.6, _GUARD, _KNEE_UP, _KNEE_UP + "tilt -12 r_knee 5", _KNEE_UP),
    "Punching": _keyed(1.1, _JAB, _CROSS),
    "Waving": _keyed(0.8, _HAND_UP + "r_elbow 30", _HAND_UP + "r_elbow 95"),
    "Dancing": _keyed(2.8, _SQUAT + "arm_abd 85", _LEFT_UP, _SQUAT + "arm_flex 80", _RIGHT_UP),
    "Raising arms": _keyed(3.2, "", "arm_flex 165 bend -12 nod -20", "", "arm_abd 155"),
    "Crouching": _keyed(2.4, "", _CROUCH, _CROUCH + "l_arm_flex 95 r_arm_flex 20 twist -20"),
}


def _record(
    people: str,
    clips: dict[str, Clip],
    *,
    frames: int,
    spread: float,
    seed: int,
    body: tuple[float, float, float, float] = (1, 1, 1, 1),
) -> Motion:
    """Let all people do every clip, each in their own way.

    ``body`` is their mean size, legs, arms and width, of which each differs by up to ``spread``.
    """
    time = np.arange(frames) / FPS
    motion: Motion = {subject: {} for subject in people.split()}
    # Each measure of the bodies is spread evenly over the people, not left to chance.
    sizes = np.tile(np.linspace(1 - spread, 1 + spread, len(motion)), (4, 1))
    bodies = default_rng(seed).permuted(sizes, axis=1).T * body
    for body, (subject, takes) in zip(bodies, motion.items(), strict=True):
        for name, clip in clips.items():
            # Every clip has random numbers of its own: a new one leaves the others as they were.
            rng = default_rng([seed, *f"{subject} {name}".encode()])
            pose = {angle: rest + _sway(time, rng, 2) for angle, (_, _, rest) in _ANGLES.items()}
            pose |= {"yaw": 0 * time, "lift": 0 * time} | clip(time, rng)
            for angle, (low, high, _) in _ANGLES.items():
                # Smoothing comes last: a mean of angles within the limits is within them, too.
                pose[angle] = _smooth(np.clip(pose[angle], low, high), 2)
            pose["yaw"] = pose["yaw"] + rng.uniform(0, 360)
            joints = _stand(_kinematics(pose, _bones(*body)), pose["lift"])
            if rng.random() < 0.5:
                joints = joints[:, _MIRRORED] * [1, -1, 1]
            takes[name] = joints.astype(np.float32)
    return motion


def source_motion(seed: int = 0) -> Motion:
    """Make gait and gestures: subject -> clip -> joints (T, 17, 3) in metres, about the origin.

    6,000 frames to train on (S1, S5, S6, S7, S8) and 1,500 to test on (S9, S11).
    """
    train = _record("S1 S5 S6 S7 S8", _SOURCE_CLIPS, frames=200, spread=0.03, seed=seed)
    return train | _record("S9 S11", _SOURCE_CLIPS, frames=125, spread=0.03, seed=seed)


def target_motion(seed: int = 1) -> Motion:
    """Make other motions of other people: 3,080 frames in the form of `source_motion`.

    Their bodies differ from the source's as those of the Bandai-Namco motions do from CMU's.
    """
    body = 0.9, 1.1, 0.95, 0.75
    return _record("P1 P2 P3 P4", _TARGET_CLIPS, frames=110, spread=0.05, seed=seed, body=body)
