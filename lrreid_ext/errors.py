"""Faults that a user can put right. Their messages name the file or config key and what to do."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config file, key, value or name that can't be used."""


class PretrainedError(ConfigError):
    """Pretrained weights that are asked for can't be had; the message says what to do instead."""
