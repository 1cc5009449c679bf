"""Checkpoints that load strictly, are written whole or not at all, and hold no code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as HostCheckpointer

from lrreid_ext.errors import WeightsError
from lrreid_ext.files import atomic, write_again, write_text
from lrreid_ext.weights import load_strictly


class Checkpointer(HostCheckpointer):
    """fastreid's checkpointer, made strict, atomic and safe."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` whole or not at all; :meth:`tag_last_checkpoint` notes the last."""
        if not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, obj in self.checkpointables.items():
            data[key] = obj.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        with atomic(path) as temporary:
            torch.save(data, temporary)
        self.logger.info("Saved %s", path)

    def save_as(self, names: Sequence[str]) -> None:
        """:meth:`save` the same state under several names; it is written once."""
        if not names or not self.save_to_disk:
            return
        first, *others = (os.path.join(self.save_dir, f"{name}.pth") for name in names)
        self.save(names[0])
        for path in others:
            write_again(first, path)
            self.logger.info("Saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the file from which a run would be resumed."""
        write_text(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def _load_file(self, f: str) -> Any:
        try:
            data = torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds
            raise WeightsError(f"checkpoint {f} can't be read: {error}") from error
        if not isinstance(data, dict) or "model" not in data:
            raise WeightsError(
                f"checkpoint {f} is not one of this program's: it has no entry 'model'. Weights of "
                "another origin go into MODEL.INIT.WEIGHTS"
            )
        self._path = f
        return data

    def _load_model(self, checkpoint: Any) -> None:
        state = {k.removeprefix("module."): v for k, v in checkpoint.pop("model").items()}
        load_strictly(self.model, state, f"checkpoint {self._path}")
