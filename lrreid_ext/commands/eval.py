"""Evaluate a trained model: the config's MODEL.WEIGHTS, or its OUTPUT_DIR's last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from lrreid_ext.engine.cli import main as train


def main(argv: Sequence[str]) -> int:
    """``lrreid train --eval-only`` with the same options."""
    return train(argv, prog="lrreid eval", evaluates=True)
