"""Estimators by name and size, on 16 joints and windows of frames."""

from __future__ import annotations

from typing import Any

from estimators import STGCN, SemGCN, SimpleBaseline, StridedTemporalModel
from torch import Tensor, nn

# As published; narrower, for a CPU; as small as a smoke run takes. SemGCN has no non-local blocks,
# as in PoseAug's code. The small one has dropout: without, single frames can explode.
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "simple_baseline": {
        "published": {},
        "small": {"width": 384, "dropout": 0.1},
        "tiny": {"width": 32},
    },
    "semgcn": {
        "published": {},
        "small": {"width": 64, "dropout": 0.1},
        "tiny": {"width": 16, "blocks": 1},
    },
    "semgcn_non_local": {
        "published": {"non_local": True},
        "small": {"width": 64, "non_local": True},
        "tiny": {"width": 16, "blocks": 1, "non_local": True},
    },
    "stgcn": {
        "published": {},
        "small": {"widths": (16, 16, 32), "part_width": 64},
        "tiny": {"widths": (8, 8, 8), "part_width": 8},
    },
    "videopose3d": {
        "published": {},
        "small": {"channels": 192, "dropout": 0.1},
        "tiny": {"channels": 16},
    },
}


class SingleFrame(nn.Module):
    """A network of one frame for windows of one: (B, 1, J, 2) to (B, 1, J, 3).

    Args:
        network: Takes (B, J, 2) to (B, J, 3), or (B, 2J) to (B, 3J).
        flat: Whether it takes (B, 2J).
    """

    def __init__(self, network: nn.Module, *, flat: bool) -> None:
        super().__init__()
        self.network, self.flat = network, flat

    def forward(self, keypoints: Tensor) -> Tensor:
        """Estimate."""
        single = keypoints[:, 0]
        joints = self.network(single.flatten(1) if self.flat else single)
        return joints.reshape(len(keypoints), 1, -1, 3)


def build(name: str, size: str = "published", frames: int = 1) -> nn.Module:
    """Build an estimator: (B, frames, 16, 2) to (B, 1, 16, 3).

    Args:
        name: One of `MODELS`.
        size: "published", "small" or "tiny".
        frames: Receptive field. VideoPose3D takes powers of three, ST-GCN odd numbers; the others
            take the first frame.

    Raises:
        SystemExit: Not a receptive field of VideoPose3D's.
    """
    options = MODELS[name][size]
    if name == "simple_baseline":
        return SingleFrame(SimpleBaseline(**options), flat=True)
    if name.startswith("semgcn"):
        return SingleFrame(SemGCN("h36m_16", **options), flat=False)
    if name == "stgcn":
        return STGCN("h36m_16", frames=frames, **options)
    powers = {3**n: n for n in range(6)}
    if frames not in powers:
        raise SystemExit(f"--frames: videopose3d takes {', '.join(map(str, powers))}, not {frames}")
    widths = (3,) * powers[frames] or (1, 1, 1)
    return StridedTemporalModel(16, 16, filter_widths=widths, **options)
