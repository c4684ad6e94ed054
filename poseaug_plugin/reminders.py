"""What keeps the hook from doing anything, said once each: nothing else would show it."""

from __future__ import annotations

import warnings

from torch import Tensor

from .errors import PoseAugWarning

_PATIENCE = 100  # batches that come to nothing, after which a word is due


class Reminders:
    """Told what happens to the hook's batches, warns where that comes to nothing.

    Args:
        names_optimizer: The hook was given the optimizer that counts.
    """

    def __init__(self, names_optimizer: bool) -> None:
        self._names_optimizer = names_optimizer
        self._without_update = 0
        self._too_small = 0
        self._has_looked = False
        self._said: set[str] = set()

    def too_small(self, size: int, share: float) -> None:
        """A batch had too few samples to augment."""
        self._too_small += 1
        if self._too_small == _PATIENCE:
            self._say(
                "small",
                f"{_PATIENCE} batches in a row were not augmented: share={share} of {size} samples "
                "is less than two. Pass a larger share, or larger batches.",
            )

    def augmenting(self) -> None:
        """A batch is about to be augmented."""
        self._too_small = 0
        self._without_update += 1
        if self._without_update == _PATIENCE:
            what = (
                "the optimizer that the hook was given has not stepped. Does another one step in "
                "its place? Leave it out, and any with the estimator's parameters counts; or"
                if self._names_optimizer
                else "no optimizer with the estimator's parameters has stepped. Is the optimizer a "
                "torch.optim.Optimizer? If not,"
            )
            self._say(
                "no-step",
                f"{_PATIENCE} batches were augmented and {what} call hook.step() right before its "
                "step().",
            )

    def augmented(self, usable: Tensor) -> None:
        """It was, of (N,) usable samples; looks at the first one, which waits for the device."""
        if self._has_looked:
            return
        self._has_looked = True
        if not usable.any():
            self._say(
                "unusable",
                "no sample of the first batch is finite and in front of the camera, so nothing was "
                "augmented. print(hook.check_batch(inputs_2d, inputs_3d, camera)) tells more.",
            )

    def updating(self) -> None:
        """An optimizer steps."""
        self._without_update = 0

    def blind(self, prediction: Tensor | None, joints: int) -> None:
        """There is a predictor, and nothing that it could learn from."""
        what = "the estimator was not seen to take the augmented batch"
        if prediction is not None:
            shape = tuple(prediction.shape)
            what = f"the estimator's output {shape} is not (batch, frames, {joints}, 3)"
        self._say(
            "blind" if prediction is None else "unreadable",
            f"{what}, so the hardness predictor learns nothing. Call hook.observe(prediction) with "
            "the predicted joints after your forward pass.",
        )

    def _say(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            # Past this and the public method here, and two of the hook's.
            warnings.warn(f"PoseAugHook: {message}", PoseAugWarning, stacklevel=5)
