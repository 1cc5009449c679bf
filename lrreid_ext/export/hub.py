"""A trained model as a folder that the Hugging Face hub and other people can use.

The folder holds ``config.yaml``, ``model.safetensors`` and ``README.md``, the model card. It is a
run like any other: every tool that takes a run's folder takes it, and ``hub:owner/name`` too.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml
from safetensors.torch import save

from lrreid_ext.config import CfgNode, changed
from lrreid_ext.errors import ConfigError
from lrreid_ext.export.card import model_card
from lrreid_ext.files import atomic, make_folder, write_text
from lrreid_ext.modeling.build import without_initial_weights
from lrreid_ext.results.portable import portable
from lrreid_ext.trained import TrainedModel
from lrreid_ext.weights import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, hub_client, hub_errors

__all__ = ["LICENSE", "push_to_hub", "save_pretrained"]

# The hub's word for terms that its list doesn't name.
LICENSE = "other"


def save_pretrained(
    run: TrainedModel, folder: str | os.PathLike[str], *, license: str = LICENSE
) -> None:
    """Write the folder. Nothing in it names a path of this machine.

    The figures in the card are those of the ``results_*.json`` in the run's folder.

    Args:
        run: the model.
        folder: made if need be; what it holds of an older model is replaced.
        license: the hub's identifier of the license, such as ``mit``, for the card.

    Raises:
        ConfigError: a license that can't be an identifier, or a file in the folder's place.
        ResultsError: a results file that can't be used.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ConfigError(f"license: {license!r} is no identifier such as mit, cc-by-nc-4.0, other")
    folder = make_folder(folder)
    card = model_card(run, license)
    state = {name: tensor.cpu().contiguous() for name, tensor in run.module.state_dict().items()}
    metadata = {"format": "pt", "training": json.dumps(portable(run.training))}
    with atomic(folder / WEIGHTS_FILE) as temporary:
        # Cloned: tensors that share memory would be refused.
        temporary.write_bytes(save({k: v.clone() for k, v in state.items()}, metadata))
    write_text(folder / CONFIG_FILE, yaml.safe_dump(shared_config(run.cfg), sort_keys=False))
    write_text(folder / CARD_FILE, card)


def shared_config(cfg: CfgNode) -> dict[str, object]:
    """A run's config for other machines: without files, folders and devices of this one.

    Plugins in files are named by their last part: they belong beside the config.
    """
    cfg = changed(
        without_initial_weights(cfg),
        ("DATASETS.ROOT", "datasets"),
        ("DATASETS.SOURCE", ""),
        ("INPUT.MASKS", ""),
        ("MODEL.BACKBONE.PRETRAIN_PATH", ""),
        ("MODEL.DEVICE", "cuda"),
        ("OUTPUT_DIR", "logs"),
        ("PLUGINS", [Path(p).name if p.endswith(".py") else p for p in cfg.PLUGINS]),
    )
    return portable(yaml.safe_load(cfg.dump(sort_keys=False)))


def push_to_hub(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload model",
) -> str:
    """Upload a folder that :func:`save_pretrained` wrote; the repository is made if need be.

    Args:
        folder: its config, weights and card are uploaded, and nothing else in it.
        repository: ``owner/name``.
        private: whether a repository made here is seen by its owner alone.
        token: of the hub; by default the one that ``hf auth login`` left.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: the hub refuses, or can't be reached.
        FileNotFoundError: the folder lacks one of the files.
    """
    folder = Path(folder)
    files = [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: holds no {name}; --to safetensors writes it")
    api = hub_client().HfApi(token=token)
    with hub_errors(
        f"{repository}: can't be uploaded", "`hf auth login` keeps the token that the hub asks for"
    ):
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, commit_message=message
        )
    return str(getattr(done, "commit_url", done))
