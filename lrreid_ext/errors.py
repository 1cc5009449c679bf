"""Errors that a user can put right. Their messages name the file or config key and what to do.

Commands catch :data:`USER_ERRORS` and print one line. Any other error is a fault of the program.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Base class of all errors that a user can put right.

    PyTorch raises an error of a loader's worker again in the main process, with the worker's
    traceback before the message. :meth:`__str__` gives the message alone.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught ") and "Traceback (most recent call last):" in text:
            text = re.split(rf"^[\w.]*{type(self).__name__}: ", text, flags=re.M)[-1].strip()
        return text


class ConfigError(UserError):
    """A config file, key, value or name that can't be used."""


class PretrainedError(ConfigError):
    """Pretrained weights that can't be downloaded or read."""


class WeightsError(UserError):
    """Weights that don't fit; the message names the file, its config key and the tensors."""


class PluginError(UserError):
    """A plugin that can't be imported; the message names it and where its name came from."""


class ImageError(UserError):
    """An image that can't be used: an unreadable file, or values of the wrong kind."""


class RecipeError(ConfigError):
    """A recipe, option or source that can't be used."""


class ManifestError(RecipeError):
    """A manifest that is missing, can't be read, or contradicts itself."""


class ResultsError(UserError):
    """A results file that can't be used, or results that can't be averaged."""


class CacheError(ConfigError):
    """A file of cached features that can't be used."""


class GalleryError(ConfigError):
    """A gallery that can't be used as asked."""


class ParityError(UserError):
    """An exported model that doesn't compute what the trained one does."""


USER_ERRORS = (UserError, FileNotFoundError, PermissionError)


def suggest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""
