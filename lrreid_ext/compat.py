"""Find fastreid 1.4.0 and make it importable on a current Python and PyTorch.

This is the only file of the project that changes anything inside fastreid. Two names that
fastreid imports no longer exist (``collections.Mapping``, removed in Python 3.10, and
``torch._six``, removed in PyTorch 2.0). They are lent to it while it is imported and taken away
again afterwards. Every other difference is handled by subclassing fastreid's extension points.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FASTREID_VERSION = "1.4.0"
INSTALL_COMMAND = f"pip install --no-deps fastreid=={FASTREID_VERSION}"


class HostNotFoundError(ImportError):
    """fastreid itself, or something that it needs, can't be imported."""


@contextmanager
def _lend_removed_names() -> Iterator[None]:
    lend_mapping = not hasattr(collections, "Mapping")
    lend_six = "torch._six" not in sys.modules
    if lend_mapping:
        collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    if lend_six:
        six = types.ModuleType("torch._six")
        six.string_classes = (str, bytes)  # type: ignore[attr-defined]
        sys.modules["torch._six"] = six
    try:
        yield
    finally:
        if lend_mapping:
            del collections.Mapping  # type: ignore[attr-defined]
        if lend_six:
            del sys.modules["torch._six"]


def import_host() -> None:
    """Import fastreid with the removed names lent to it. Safe to call any number of times.

    Raises:
        HostNotFoundError: with the command that installs what is missing.
    """
    if "fastreid.engine" in sys.modules:
        return
    if importlib.util.find_spec("fastreid") is None:
        raise HostNotFoundError(
            "lrreid_ext runs on fastreid, which is not installed. Its published pins would replace "
            f"your PyTorch, so install it on its own:\n\n    {INSTALL_COMMAND}\n"
        )
    try:
        with _lend_removed_names(), warnings.catch_warnings():
            # It recommends its Cython ranking, which this project has no use for.
            warnings.filterwarnings("ignore", message="Cython rank evaluation")
            # The trainer pulls in data, modelling, solver and evaluation; the predictor likewise.
            for name in ("fastreid.engine", "fastreid.modeling", "fastreid.evaluation.rank"):
                importlib.import_module(name)
    except ImportError as error:
        raise HostNotFoundError(
            f"fastreid is installed but can't be imported: {error}. Install this project with its "
            f"dependencies (`pip install -e .`) and fastreid {FASTREID_VERSION}:\n\n"
            f"    {INSTALL_COMMAND}\n"
        ) from error
