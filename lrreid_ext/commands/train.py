"""Train a model by the phases of its config, and evaluate it."""

from lrreid_ext.engine.cli import main, parser

__all__ = ["main", "parser"]
