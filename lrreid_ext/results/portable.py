"""Figures and their provenance without the paths of the machine that they come from."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["COMMAND", "portable"]

COMMAND = "command"

# How an absolute path begins, also after "key:" or a bracket; not the slashes of a/b or http://a.
_ROOT = r"(?:file:///|(?<![\w./~-])(?!(?<=:)//)(?:~?/|[A-Za-z]:[\\/]))"
_QUOTED = re.compile(rf"""(?P<quote>['"])(?P<path>{_ROOT}[^'"]+)(?P=quote)""")
_BARE = re.compile(rf"""{_ROOT}[^\s'",;:)\]}}]+""")
_OPTION = re.compile(r"--?[\w.-]+=")


def portable(value: Any, key: str = "") -> Any:
    """JSON content whose strings hold no absolute path: of each, ``.../`` and its last part stay.

    Args:
        value: anything JSON holds.
        key: the key that it stands under; a ``command`` is taken apart word by word.
    """
    if isinstance(value, Mapping):
        return {k: portable(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [portable(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if key != COMMAND:
        return _shortened(value)
    try:
        words = shlex.split(value)
    except ValueError:  # quotes that don't close: not a command after all
        return _shortened(value)
    return shlex.join(_shortened(word) for word in words)


def _shortened(text: str) -> str:
    option = _OPTION.match(text)
    start = option.end() if option else 0
    if re.match(_ROOT, text[start:]):  # all of it is one path, which may hold blanks
        return text[:start] + _last(text[start:])
    text = _QUOTED.sub(lambda m: m["quote"] + _last(m["path"]) + m["quote"], text)
    return _BARE.sub(lambda m: _last(m[0]), text)


def _last(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", "~", "file:")]
    return f".../{parts[-1]}" if parts else path
