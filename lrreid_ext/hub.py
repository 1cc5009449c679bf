"""Where models of the Hugging Face hub lie on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lrreid_ext.errors import ConfigError

__all__ = ["CARD_FILE", "CONFIG_FILE", "HUB", "WEIGHTS_FILE", "asked", "client", "download"]

# How a hub repository is named where a run is asked for: hub:owner/name, hub:owner/name@revision.
HUB = "hub:"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.yaml", "model.safetensors", "README.md"

_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def client() -> Any:
    """The module huggingface_hub.

    Raises:
        ConfigError: it isn't installed; says how to.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "the Hugging Face hub needs huggingface_hub: pip install -e .[hub] in the checkout"
        ) from error
    return huggingface_hub


@contextmanager
def asked(failed: str, advice: str) -> Iterator[None]:
    """The hub's errors, and those of whatever HTTP library its client uses, as one message."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{failed} ({type(error).__name__}: {why}). {advice}") from error


def download(name: str) -> Path:
    """The folder of a model, downloaded where it isn't yet.

    Only its config, weights and card are taken: no code comes from the hub.

    Args:
        name: ``owner/name`` or ``owner/name@revision``, with or without ``hub:`` before it.

    Raises:
        ConfigError: another kind of name, or a repository that can't be had.
    """
    parts = _ID.fullmatch(name.removeprefix(HUB))
    if parts is None:
        raise ConfigError(
            f"{name}: a hub model is named {HUB}owner/name or {HUB}owner/name@revision"
        )
    hub = client()
    with asked(
        f"{name}: can't be had from the hub",
        "Where there is no network, name a folder with its files",
    ):
        folder = hub.snapshot_download(
            parts["repository"],
            revision=parts["revision"],
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
        )
    _refuse_code(Path(folder) / CONFIG_FILE, name)
    return Path(folder)


def _refuse_code(config: Path, name: str) -> None:
    """Stop where a stranger's config would import modules or read other files of this machine."""
    if not config.is_file():
        raise ConfigError(f"{name}: holds no {CONFIG_FILE}; it isn't a model of this project")
    try:
        raw = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: its {CONFIG_FILE} can't be read: {error}") from error
    asked = [key for key in ("PLUGINS", "_BASE_") if isinstance(raw, dict) and raw.get(key)]
    if asked:
        raise ConfigError(
            f"{name}: its {CONFIG_FILE} has {asked[0]} {raw[asked[0]]}, and nothing of that kind "
            f"is loaded from the hub. If you trust it, copy {config.parent} and what it names "
            "into a folder, and name that"
        )
