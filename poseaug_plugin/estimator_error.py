"""The estimator's error on augmented poses: seen in the user's own pass, or asked for in ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adapters import Adapter, HostPoses
from .config import PoseAugConfig
from .errors import PoseAugError
from .generation import Augmented, evenly_spaced, matching_frames
from .isolation import TorchDefaults, isolated_call
from .losses import estimator_errors
from .observation import first_tensor
from .rigid import root_relative
from .skeleton import Skeleton


def observed_error(
    prediction: Tensor | None, augmented: Augmented, adapter: Adapter, skeleton: Skeleton
) -> Tensor | None:
    """Mean joint error of the user's own forward pass.

    Args:
        prediction: What the estimator said to the batch; of a window, perhaps one frame only.
        augmented: The batch.
        adapter: Reads the prediction.
        skeleton: The tree.

    Returns:
        (N,) metres, root-relative; None where the prediction is missing or not readable.
    """
    if prediction is None:
        return None
    target = root_relative(augmented.joints, skeleton)
    try:
        predicted = root_relative(adapter.predicted_joints(prediction, skeleton), skeleton)
    except (RuntimeError, ValueError, IndexError):
        return None
    target = matching_frames(target, predicted.shape[1], augmented.target)
    if predicted.shape != target.shape:
        return None
    return estimator_errors(predicted, target, "mpjpe", skeleton)[:, 0]


class IsolatedError:
    """Asks the estimator itself, without a trace in it; differentiable in the poses.

    Args:
        estimator: The user's.
        clean: The host's own rows, whose format the poses are put into.
        augmented: What is asked about.
        adapter: Does that.
        skeleton: The tree.
        config: ``error`` and ``estimator_mode`` of it.
        generator: For dropout as found.
        defaults: The user's, which the estimator is called under.
    """

    def __init__(
        self,
        estimator: nn.Module,
        clean: HostPoses,
        augmented: Augmented,
        adapter: Adapter,
        skeleton: Skeleton,
        config: PoseAugConfig,
        generator: torch.Generator,
        defaults: TorchDefaults,
    ) -> None:
        rows = evenly_spaced(augmented.rows.shape[0], config.update_batch, augmented.rows.device)
        if rows is not None:
            clean = HostPoses(*(poses.index_select(0, rows.to(poses.device)) for poses in clean))
        self.estimator, self.clean, self.adapter = estimator, clean, adapter
        self.frames, self.target = augmented.joints.shape[1], augmented.target
        self.skeleton, self.config, self.generator = skeleton, config, generator
        self.defaults = defaults

    def __call__(self, keypoints: Tensor, joints: Tensor) -> Tensor:
        """(B, T, J, 2) and (B, T, J, 3) to errors (B, terms).

        Raises:
            PoseAugError: The estimator returns no tensor.
        """
        joints = matching_frames(joints, self.frames, self.target)
        inputs = self.adapter.encode(joints, keypoints, self.clean, self.skeleton).inputs_2d
        inputs = getattr(self.adapter, "estimator_inputs", lambda same: same)(inputs)
        mode = self.config.estimator_mode
        with self.defaults.used():
            output = first_tensor(isolated_call(self.estimator, inputs, self.generator, mode))
        if output is None:
            raise PoseAugError("feedback='estimator' needs an estimator that returns a tensor.")
        predicted = root_relative(
            self.adapter.predicted_joints(output, self.skeleton), self.skeleton
        )
        joints = matching_frames(joints, predicted.shape[1], self.target)
        target = root_relative(joints, self.skeleton)
        return estimator_errors(predicted, target, self.config.error, self.skeleton)
