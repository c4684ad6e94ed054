"""2D-to-3D pose estimators, written from their papers: what the augmentation is tried on."""

from __future__ import annotations

from .semgcn import SemGCN
from .simple_baseline import SimpleBaseline
from .stgcn import STGCN
from .transformer import SpatioTemporalTransformer
from .videopose3d import StridedTemporalModel, TemporalModel

__all__ = [
    "STGCN",
    "SemGCN",
    "SimpleBaseline",
    "SpatioTemporalTransformer",
    "StridedTemporalModel",
    "TemporalModel",
]
