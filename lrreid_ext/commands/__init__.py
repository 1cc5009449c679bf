"""The commands of ``lrreid``, a module each; :mod:`lrreid_ext.cli` says what a command defines."""

from __future__ import annotations

__all__ = ["COMMANDS"]

#: Line of help of each command, by the name of its module.
COMMANDS = {
    "train": "train a model by the phases of its config, and evaluate it",
    "eval": "evaluate trained models, or files of their features, by any protocol",
    "sweep": "train, evaluate and compare variants, random splits or seeds of a config",
    "build": "build a cross-resolution data set from an ordinary one, or check a built one",
    "report": "write one HTML page about trained models",
    "gallery": "put images of people into a gallery, and rank it for low-resolution queries",
    "export": "write a trained model for other runtimes: ONNX, torch.export, safetensors",
    "list": "list front-ends, backbones, heads, methods, recipes ... with a line on each",
    "bench": "measure ranking, search, export and training side by side (in a checkout)",
}
