"""Results without the paths of the machine that measured them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["COMMAND", "portable"]

COMMAND = "command"

# The start of an absolute path, also after "key:" or a bracket; not the slashes of a/b or http://a.
_ROOT = r"(?:file:///|(?<![\w./~-])(?!(?<=:)//)(?:~?/|[A-Za-z]:[\\/]))"
_QUOTED = re.compile(rf"""(?P<quote>['"])(?P<path>{_ROOT}[^'"]+)(?P=quote)""")
_BARE = re.compile(rf"""{_ROOT}[^\s'",;:)\]}}]+""")
_OPTION = re.compile(r"--?[\w.-]+=")


def portable(value: Any, key: str = "") -> Any:
    """Shorten every absolute path in JSON content to ``.../`` and its last part.

    Args:
        value: anything JSON holds.
        key: its key in the mapping; a ``command`` is handled word by word.
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
    except ValueError:  # unclosed quotes: not a command
        return _shortened(value)
    return shlex.join(_shortened(word) for word in words)


def _shortened(text: str) -> str:
    option = _OPTION.match(text)
    start = option.end() if option else 0
    if re.match(_ROOT, text[start:]):  # one path, which may contain spaces
        return text[:start] + _last(text[start:])
    text = _QUOTED.sub(lambda m: m["quote"] + _last(m["path"]) + m["quote"], text)
    return _BARE.sub(lambda m: _last(m[0]), text)


def _last(path: str) -> str:
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", "~", "file:")]
    return f".../{parts[-1]}" if parts else path
