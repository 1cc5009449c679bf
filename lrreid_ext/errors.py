"""Faults that a user can put right. Their messages name the file or config key and what to do."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config file, key, value or name that can't be used."""


class PretrainedError(ConfigError):
    """Pretrained weights that are asked for can't be had; the message says what to do instead."""


class ImageError(ValueError):
    """An image that can't be used: a file that can't be read, or values of the wrong kind."""
