"""Plugins: packages that register entries, and may add config keys, when imported; and recipes in
YAML (see :mod:`lrreid_ext.data.recipes.written`).

The five papers' wiring under ``projects/`` comes in through the same door as anybody else's: a
bundled project, an installed package with an entry point in the group ``lrreid_ext.plugins``, and
a module named in a config's ``PLUGINS`` are all imported, and their ``add_config(cfg)`` called if
they have one, before any YAML is merged.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lrreid_ext.errors import ConfigError, UserError

if TYPE_CHECKING:
    from fastreid.config import CfgNode

GROUP = "lrreid_ext.plugins"

# Modules of this package that register entries when imported.
BUILTIN = (
    "lrreid_ext.modeling.frontends",
    "lrreid_ext.modeling.backbones",
    "lrreid_ext.modeling.heads",
    "lrreid_ext.modeling.losses",
    "lrreid_ext.modeling.meta_arch",
    "lrreid_ext.data.recipes",
    "lrreid_ext.evaluation",
)

#: Endings of files that name a recipe, not a module.
YAML_SUFFIXES = (".yml", ".yaml")

# Folders of installed packages, in which neighbours have nothing to do with each other.
_INSTALLED = frozenset(("site-packages", "dist-packages"))

_imported: dict[str, None] = {}

logger = logging.getLogger(__name__)


class PluginError(UserError):
    """A plugin that can't be imported; the message names it and where it came from."""


def load_plugins(cfg: CfgNode, extra: Sequence[str] = ()) -> list[str]:
    """Import every plugin and let each add its keys to ``cfg``.

    Args:
        cfg: a config that no YAML has been merged into yet.
        extra: dotted module names, or paths of ``.py`` files, or of ``.yml`` files of recipes.

    Returns:
        The names of the plugins, in the order loaded.

    Raises:
        PluginError: one of them can't be imported.
    """
    for name in BUILTIN:
        importlib.import_module(name)
    loaded = []
    wanted = [(f"projects.{name}", "bundled project") for name in bundled_projects()]
    wanted += [(point.value, f"entry point {point.name!r}") for point in entry_points(group=GROUP)]
    wanted += [(name, "PLUGINS") for name in extra]
    for name, origin in wanted:
        if name in loaded:
            continue
        module = import_plugin(name, origin)
        add_config = getattr(module, "add_config", None)
        if add_config is not None:
            try:
                add_config(cfg)
            except Exception as error:  # whatever a stranger's code does wrong
                raise PluginError(
                    f"plugin {name!r} ({origin}): its add_config fails: {error!r}"
                ) from error
        loaded.append(name)
    return loaded


def plugin_commands() -> dict[str, tuple[str, str]]:
    """Commands of bundled projects and of installed plugins, without importing the plugins.

    A plugin declares its commands in a literal of its module (for a package, ``__init__.py``)::

        COMMANDS = {"gates": ("projects.FFSR_RIFE.commands.gates", "show what the gates learned")}

    Returns:
        For each command the name of its module and a line of help. :mod:`lrreid_ext.cli` says what
        the module has to define.
    """
    commands: dict[str, tuple[str, str]] = {}
    for name in bundled_projects():
        commands |= _declared_commands(Path(str(projects_root()), name, "__init__.py"))
    for point in entry_points(group=GROUP):
        try:
            spec = importlib.util.find_spec(point.value)
        except ImportError:  # loading the plugin will say what is wrong
            continue
        if spec is not None and spec.origin is not None:
            commands |= _declared_commands(Path(spec.origin))
    return commands


def _declared_commands(path: Path) -> dict[str, tuple[str, str]]:
    if path.suffix != ".py":
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS":
            return ast.literal_eval(node.value)
    return {}


def projects_root() -> Path | None:
    """The folder ``projects/`` of a source checkout or an editable install, if there is one."""
    root = Path(__file__).resolve().parent.parent / "projects"
    return root if (root / "__init__.py").is_file() else None


def bundled_projects() -> list[str]:
    """Names of the packages in ``projects/``."""
    root = projects_root()
    if root is None:
        return []
    return sorted(p.parent.name for p in root.glob("*/__init__.py"))


def import_plugin(name: str, origin: str) -> ModuleType | None:
    """Import one plugin, or register one recipe in YAML (None).

    Args:
        name: a dotted module name, or the path of a ``.py`` or ``.yml`` file.
        origin: where the name comes from, for the message.

    Raises:
        PluginError: it can't be imported.
    """
    module = None
    try:
        if name.endswith(YAML_SUFFIXES):
            from lrreid_ext.data.recipes.written import register_recipe_file

            register_recipe_file(name)
        elif name.endswith(".py"):
            module = _import_file(Path(name))
        else:
            module = import_module(name)
    except (ImportError, OSError, SyntaxError, ConfigError) as error:
        raise PluginError(f"plugin {name!r} ({origin}) can't be imported: {error}") from error
    if not name.startswith("projects."):
        _imported[name] = None
    return module


def import_module(name: str) -> ModuleType:
    """Import a module; ``projects.*`` is found beside this package in any working directory."""
    if name.startswith("projects."):
        root = str(projects_root().parent)  # type: ignore[union-attr]
        if root not in sys.path:
            sys.path.append(root)
    return importlib.import_module(name)


def imported_plugins() -> list[str]:
    """The plugins that this process has imported, bundled projects left aside, in order: what
    another process has to import to know their entries."""
    return list(_imported)


def plugin_files() -> list[Path]:
    """The Python files of bundled projects and of the plugins that this process has imported.

    A package's are all that is in it. Of a single file, those beside it belong to it as well, for
    it may import them at any time, and what is imported from below its folder.
    """
    root = projects_root()
    found = set() if root is None else set(root.rglob("*.py"))
    for name in _imported:
        module = sys.modules.get(name)
        file = name if name.endswith(".py") else getattr(module, "__file__", None)
        if file is None:
            continue
        path = Path(file).resolve()
        if getattr(module, "__package__", ""):
            found |= set(path.parent.rglob("*.py"))
        elif _INSTALLED & set(path.parts):
            found.add(path)
        else:
            found |= {path, *path.parent.glob("*.py"), *_imported_below(path.parent)}
    return sorted(found)


def _imported_below(folder: Path) -> set[Path]:
    """Files of modules in a folder, but for this package's own and installed ones."""
    own = Path(__file__).resolve().parent
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {Path(file).resolve() for file in files if isinstance(file, str)}
    return {
        path
        for path in paths
        if path.suffix == ".py" and path.is_relative_to(folder) and path.is_file()
        if not path.is_relative_to(own) and not _INSTALLED & set(path.parts)
    }


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    # One module per file, however often and by whatever relative path it is named.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"lrreid_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
