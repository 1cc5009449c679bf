"""Faults that a user can put right. Their messages name the file or config key and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """What the others have in common: their text is what was said where they were raised.

    PyTorch makes an error of a loader's worker anew, with the worker's traceback before its text.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught ") and "Traceback (most recent call last):" in text:
            text = re.split(rf"^[\w.]*{type(self).__name__}: ", text, flags=re.M)[-1].strip()
        return text


class ConfigError(UserError):
    """A config file, key, value or name that can't be used."""


class PretrainedError(ConfigError):
    """Pretrained weights that are asked for can't be had; the message says what to do instead."""


class ImageError(UserError):
    """An image that can't be used: a file that can't be read, or values of the wrong kind."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""
