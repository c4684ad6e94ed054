"""The code bases: the lines that docs/hosts/*.md tell, and how to run two short epochs."""

from __future__ import annotations

from . import mmpose, motionbert, semgcn, simple_baseline, stgcn, videopose3d

HOSTS = {
    host.name: host
    for host in (
        videopose3d.HOST,
        videopose3d.WINDOWS,
        semgcn.HOST,
        semgcn.LINEAR,
        stgcn.HOST,
        simple_baseline.HOST,
        motionbert.HOST,
        mmpose.HOST,
    )
}
