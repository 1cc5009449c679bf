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
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
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


def _import_parts() -> None:
    """Import the parts of fastreid that need the removed names, while these are lent to it."""
    try:
        with _lend_removed_names(), warnings.catch_warnings():
            # It recommends its Cython ranking, which this project has no use for.
            warnings.filterwarnings("ignore", message="Cython rank evaluation")
            # The trainer imports data, modelling, solver and evaluation; the predictor too.
            for name in ("fastreid.engine", "fastreid.modeling", "fastreid.evaluation.rank"):
                importlib.import_module(name)
    except ImportError as error:
        raise HostNotFoundError(
            f"fastreid is installed but can't be imported: {error}. Install this project with its "
            f"dependencies (`pip install -e .`) and fastreid {FASTREID_VERSION}:\n\n"
            f"    {INSTALL_COMMAND}\n"
        ) from error


class _HostLoader(importlib.machinery.SourceFileLoader):
    """Loads the package ``fastreid`` with all its parts."""

    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        _import_parts()


class _HostFinder(importlib.abc.MetaPathFinder):
    """Finds ``fastreid`` before any other finder does.

    Raises:
        HostNotFoundError: it isn't installed; the message has the command that installs it.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "fastreid":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None:
            raise HostNotFoundError(
                "lrreid_ext runs on fastreid, which is not installed. Its published pins would "
                f"replace your PyTorch, so install it on its own:\n\n    {INSTALL_COMMAND}\n"
            )
        spec.loader = _HostLoader(name, spec.origin)
        return spec


def prepare_host() -> None:
    """Let fastreid be imported, whenever somebody first does. Safe to call any number of times.

    Raises:
        HostNotFoundError: fastreid, of which somebody has imported a part already, lacks something.
    """
    if "fastreid" in sys.modules:
        _import_parts()
    elif not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())
