"""Which parts of the hook help? The generalisation benchmark with one part changed, validated.

    python examples/benchmarks/ablation.py --data FOLDER [--rows ...] [--estimators ...]

The test is on held-out motions of the training subjects, so options can be chosen by it. Options
are those of `generalisation.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import generalisation

ROWS = (
    "none",
    "nothing learned",
    "default",
    "without critics",
    "without feedback",
    "bone angles only",
    "bone lengths only",
    "rigid only",
    "append",
)


def main(given: Sequence[str] | None = None) -> None:
    """Run the rows that are not in the results file yet."""
    own = ["--validate", "--out", "runs/ablation.json", "--rows", *ROWS]
    generalisation.main([*own, *(sys.argv[1:] if given is None else given)])


if __name__ == "__main__":
    main()
