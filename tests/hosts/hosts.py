"""The code bases: the lines that docs/hosts/*.md tell, and how to run two short epochs."""

from __future__ import annotations

from . import semgcn, videopose3d

HOSTS = {module.HOST.name: module.HOST for module in (videopose3d, semgcn)}
