"""VGG-19 (Simonyan and Zisserman 2015) as a fixed judge of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.modeling.backbones.pretrained import hub_weights
from lrreid_ext.weights import load_strictly, read_state_dict

__all__ = ["KEY", "VGG19", "WAYS_OUT", "read_vgg"]

KEY = "CSRGAN.VGG.WEIGHTS"
WAYS_OUT = (
    f"Name a file with torchvision's VGG-19 in {KEY} (.pth or .safetensors), or vgg19.tv_in1k, "
    "which is downloaded from timm's hub; or switch off the losses that need it: "
    "CSRGAN.VGG_WEIGHT 0 CSRGAN.COMMON_WEIGHT 0"
)

# Convolutions before each max pooling.
CONVOLUTIONS = (2, 2, 4, 4, 4)
# How many modules of torchvision's ``features`` a layer's map has passed.
LAYERS = {
    f"conv{i + 1}_{j + 1}": 2 * (sum(CONVOLUTIONS[:i]) + j + 1) + i
    for i, count in enumerate(CONVOLUTIONS)
    for j in range(count)
}
# Where the network's input comes from, in ImageNet's statistics, on the 0-1 scale.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The map that the classifier reads.
POOLED = 7

logger = logging.getLogger(__name__)


class VGG19(nn.Module):
    """VGG-19 with given weights, which never change: feature maps after one layer, and classes.

    The layers are VGG-19's, their widths are those of the weights. Always in evaluation mode.

    Args:
        state: weights by torchvision's names (``features.0.weight`` ... ``classifier.6.bias``).
        layer: where :meth:`forward` takes its maps, ``convi_j``: after the j-th convolution before
            the i-th max pooling, and its ReLU.
        classes: keep what follows, for the classes.
        where: where the weights come from, for messages.

    Raises:
        ConfigError: no such layer.
        WeightsError: weights of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        state: Mapping[str, Tensor],
        layer: str = "conv5_4",
        *,
        classes: bool = True,
        where: str,
    ) -> None:
        super().__init__()
        check_layer(layer)
        features, classifier = _parts(state, where)
        load_strictly(
            nn.ModuleDict({"features": features, "classifier": classifier}),
            state,
            f"{where}: not a VGG-19",
        )
        cut = LAYERS[layer]
        self.layer = layer
        self.features = features[:cut]
        self.rest = features[cut:] if classes else None
        self.pool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = classifier if classes else None
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> VGG19:
        """Stays in evaluation mode: its dropout would judge the same image in two ways."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) RGB, 0-255, to the layer's maps (B, C, h', w')."""
        return self.features((images / 255.0 - self.mean) / self.std)

    def classify(self, maps: Tensor) -> Tensor:
        """The layer's maps to (B, classes) logits.

        A last map of another size than 7x7 is averaged, or repeated, to that: persons needn't be
        enlarged to 224x224.
        """
        if self.rest is None or self.classifier is None:
            raise RuntimeError("this VGG-19 was built without its classes")
        return self.classifier(self.pool(self.rest(maps)).flatten(1))


def check_layer(layer: str) -> None:
    """Raise ConfigError if VGG-19 has no such layer."""
    if layer not in LAYERS:
        raise ConfigError(f"CSRGAN.VGG.LAYER: {layer!r} is none of {', '.join(LAYERS)}")


def smallest(layer: str) -> int:
    """The pixels a side must have at least for the layer's map not to be empty."""
    return 2 ** (int(layer.removeprefix("conv").split("_")[0]) - 1)


def _parts(state: Mapping[str, Tensor], where: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The convolutions and the dense layers of a VGG-19 of the weights' widths."""
    layout: list[Any] = []
    at = 0
    try:
        for count in CONVOLUTIONS:
            layout += [len(state[f"features.{at + 2 * j}.weight"]) for j in range(count)] + ["M"]
            at += 2 * count + 1
        widths = [
            layout[-2] * POOLED**2,
            *(len(state[f"classifier.{k}.weight"]) for k in (0, 3, 6)),
        ]
    except KeyError as error:
        raise WeightsError(f"{where}: not a VGG-19: it has no {error.args[0]}") from error
    hidden = [(nn.Linear(*widths[k : k + 2]), nn.ReLU(), nn.Dropout()) for k in (0, 1)]
    return make_layers(layout), nn.Sequential(*hidden[0], *hidden[1], nn.Linear(*widths[2:]))


def read_vgg(weights: str, layer: str, *, classes: bool) -> VGG19:
    """VGG-19 by CSRGAN.VGG.WEIGHTS.

    Args:
        weights: a file, or the name of a timm model.
        layer, classes: see :class:`VGG19`.

    Raises:
        ConfigError: no weights are named; or they can't be downloaded (PretrainedError).
        FileNotFoundError, WeightsError: the file can't be used.
    """
    if not weights:
        raise ConfigError(f"{KEY}: the VGG and the common-human loss need a VGG-19. {WAYS_OUT}.")
    if Path(weights).suffix in (".pth", ".pt", ".safetensors") or Path(weights).is_file():
        state: Mapping[str, Tensor] = read_state_dict(weights, KEY)
    else:
        state = from_timm(hub_weights(weights, ways_out=f"{WAYS_OUT}."))
    logger.info("%s: VGG-19 from %s", KEY, weights)
    return VGG19(state, layer, classes=classes, where=f"{KEY}: {weights}")


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights, whose first dense layers are convolutions, as torchvision has them."""
    renamed = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3."}
    renamed["head.fc."] = "classifier.6."
    out = {}
    for name, value in state.items():
        for old, new in renamed.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                value = value.flatten(1) if value.ndim > 1 else value
        out[name] = value
    return out
