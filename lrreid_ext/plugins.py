"""Plugins: modules that register entries, and may add config keys, when they are imported.

The parts of this package, the projects under ``projects/``, installed packages with an entry point
in the group ``lrreid_ext.plugins``, and modules named in a config's ``PLUGINS`` are loaded alike:
they are imported, and the functions ``add_config(cfg)`` of their modules called, before any YAML is
merged. A plugin may also be a file; :data:`FILE_HANDLERS` says what loads it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lrreid_ext.errors import ConfigError, PluginError

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

#: Suffixes of plugins that are files, not modules.
FILE_SUFFIXES = (".py", ".yml", ".yaml")

#: By suffix, what loads a plugin file and returns what it held. ``lrreid_ext.data.recipes`` adds
#: the handler of recipes in YAML.
FILE_HANDLERS: dict[str, Callable[[str], object]] = {}

# Folders of installed packages, in which neighbours have nothing to do with each other.
_INSTALLED = frozenset(("site-packages", "dist-packages"))

_imported: dict[str, None] = {}

logger = logging.getLogger(__name__)


def load_plugins(cfg: CfgNode, extra: Sequence[str] = ()) -> None:
    """Import every plugin, and let its modules add their keys to ``cfg``.

    A module with keys offers ``add_config(cfg)``. In a package it may be any module that the
    package imports. The parts of this package are loaded in the same way.

    Args:
        cfg: a config that no YAML has been merged into yet.
        extra: dotted names of modules, or paths of ``.py`` or ``.yml`` files.

    Raises:
        PluginError: one of them can't be imported, or its ``add_config`` fails.
    """
    for name in BUILTIN:
        _add_keys(cfg, importlib.import_module(name), name)
    plugins = {f"projects.{name}": "bundled project" for name in bundled_projects()}
    for point in entry_points(group=GROUP):
        plugins.setdefault(point.value, f"entry point {point.name!r}")
    for name in extra:
        plugins.setdefault(name, "PLUGINS")
    for name, origin in plugins.items():
        module = import_plugin(name, origin)
        if isinstance(module, ModuleType):
            _add_keys(cfg, module, f"plugin {name!r} ({origin})")


def _add_keys(cfg: CfgNode, plugin: ModuleType, what: str) -> None:
    """Call ``add_config`` of a module and of the modules in its package, each function once."""
    start = f"{plugin.__name__}."
    modules = [plugin, *(m for name, m in list(sys.modules.items()) if name.startswith(start))]
    functions = [getattr(module, "add_config", None) for module in modules]
    for add_config in dict.fromkeys(f for f in functions if f is not None):
        try:
            add_config(cfg)
        except Exception as error:  # whatever a stranger's code does wrong
            raise PluginError(f"{what}: its add_config fails: {error!r}") from error


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


def import_plugin(name: str, origin: str) -> object:
    """Import one plugin.

    Args:
        name: a dotted module name, or the path of a file with a suffix of :data:`FILE_SUFFIXES`.
        origin: where the name comes from, for the message.

    Returns:
        The module, or what the handler of the file returns: a recipe's name.

    Raises:
        PluginError: it can't be imported.
    """
    try:
        if name.endswith(FILE_SUFFIXES):
            plugin = FILE_HANDLERS[Path(name).suffix](name)
        else:
            plugin = import_module(name)
    except (ImportError, OSError, SyntaxError, ConfigError) as error:
        raise PluginError(f"plugin {name!r} ({origin}) can't be imported: {error}") from error
    if not name.startswith("projects."):
        _imported[name] = None
    return plugin


def import_module(name: str) -> ModuleType:
    """Import a module; ``projects.*`` is found beside this package in any working directory."""
    if name.startswith("projects."):
        root = str(projects_root().parent)  # type: ignore[union-attr]
        if root not in sys.path:
            sys.path.append(root)
    return importlib.import_module(name)


def imported_plugins() -> list[str]:
    """The plugins that this process has imported, in order, without the bundled projects.

    Another process must import them to have their entries.
    """
    return list(_imported)


def plugin_files() -> list[Path]:
    """The Python files of bundled projects and of the plugins that this process has imported.

    Of a package, all files in it. Of a single file, also the files beside it, which it may import
    at any time, and modules imported from below its folder.
    """
    root = projects_root()
    files = set() if root is None else set(root.rglob("*.py"))
    for name in _imported:
        module = sys.modules.get(name)
        file = name if name.endswith(".py") else getattr(module, "__file__", None)
        if file is None:
            continue
        path = Path(file).resolve()
        if getattr(module, "__package__", ""):
            files |= set(path.parent.rglob("*.py"))
        elif _INSTALLED & set(path.parts):
            files.add(path)
        else:
            files |= {path, *path.parent.glob("*.py"), *_imported_below(path.parent)}
    return sorted(files)


def _imported_below(folder: Path) -> set[Path]:
    """Files of modules in a folder, without this package's own and installed ones."""
    package = Path(__file__).resolve().parent
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {Path(file).resolve() for file in files if isinstance(file, str)}
    return {
        path
        for path in paths
        if path.suffix == ".py" and path.is_relative_to(folder) and path.is_file()
        if not path.is_relative_to(package) and not _INSTALLED & set(path.parts)
    }


def _import_file(name: str) -> ModuleType:
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    # One module per file, however often and by whatever relative path it is named.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_name = f"lrreid_plugin_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


FILE_HANDLERS[".py"] = _import_file
