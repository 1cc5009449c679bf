"""Other people's super-resolution networks, as spandrel reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from torch import Tensor, nn

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.frontends.interpolation import resampling
from lrreid_ext.modeling.frontends.restoration import Restoration
from lrreid_ext.modeling.inference import evaluating
from lrreid_ext.registry import FRONTEND_REGISTRY
from lrreid_ext.weights import read_state_dict

KEY = "MODEL.SR.SPANDREL.WEIGHTS"
FEEDS = ("reduced", "full")


def add_config(cfg: CfgNode) -> None:
    """Keys of :class:`Spandrel`."""
    # A super-resolution network's file (.pth or .safetensors) that spandrel reads;
    # whether it's left as it is, or trained on; and what it's fed: images reduced by its scale
    # (reduced), or as they are (full).
    cfg.MODEL.SR.SPANDREL = CfgNode()
    cfg.MODEL.SR.SPANDREL.WEIGHTS = ""
    cfg.MODEL.SR.SPANDREL.FROZEN = True
    cfg.MODEL.SR.SPANDREL.FEED = "reduced"


@FRONTEND_REGISTRY.register()
class Spandrel(Restoration):
    """Any super-resolution checkpoint that spandrel recognises, frozen or trained on.

    spandrel finds the architecture by the names and shapes in the file; no other key describes it.
    A network that enlarges k times gets the image reduced to 1/k of the input's size, which
    keeps all that an image of so few native pixels has; or the image as it is, and its result is
    reduced: k * k times the work, and nothing is lost of an image with more native pixels.
    Height and width are padded to the multiples that the network needs.

    Args:
        weights: a ``.pth`` or ``.safetensors`` file of tensors, of whatever size; pickled code is
            refused. "" is for a model whose own checkpoint is loaded next, and names the network.
        frozen: leave the network as it is, also its batch-norm statistics.
        feed: ``reduced`` or ``full``, see above.
        loss: see :class:`~lrreid_ext.modeling.frontends.restoration.Restoration`.

    Attributes:
        scale: how many times the network enlarges.

    Raises:
        ConfigError: spandrel isn't installed, or its network for the file isn't one of RGB images.
        FileNotFoundError, WeightsError: a file that isn't there, or can't be read.
    """

    net: nn.Module | None

    @configurable
    def __init__(
        self, *, weights: str, frozen: bool = True, feed: str = "reduced", loss: str = "l1"
    ) -> None:
        super().__init__(loss)
        if feed not in FEEDS:
            raise ConfigError(f"MODEL.SR.SPANDREL.FEED: {feed!r} is none of {', '.join(FEEDS)}")
        self.frozen, self.feed = frozen, feed
        self.learns = not frozen
        self.net, self.scale = None, 1
        self._derives = True
        self.register_load_state_dict_post_hook(_settled)
        if weights:
            self._build(read_state_dict(weights, KEY), f"{KEY}: {weights}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.SR.SPANDREL
        return {
            "weights": node.WEIGHTS,
            "frozen": node.FROZEN,
            "feed": node.FEED,
            "loss": cfg.MODEL.SR.LOSS,
        }

    def _build(self, state: Mapping[str, Tensor], what: str) -> None:
        try:
            import spandrel
        except ImportError as error:
            raise ConfigError(
                "MODEL.SR.NAME: Spandrel needs spandrel: pip install -e .[spandrel] in the checkout"
            ) from error
        try:
            network: Any = spandrel.ModelLoader().load_from_state_dict(
                spandrel.canonicalize_state_dict(dict(state))
            )
        except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError) as error:
            names = ", ".join(list(state)[:3])
            raise ConfigError(
                f"{what}: spandrel knows no network with such weights ({names} ...): {error}"
            ) from error
        if not isinstance(network, spandrel.ImageModelDescriptor):
            raise ConfigError(
                f"{what}: {network.architecture.name} fills masks; it restores nothing"
            )
        if (network.input_channels, network.output_channels) != (3, 3):
            raise ConfigError(
                f"{what}: {network.architecture.name} maps {network.input_channels} channels to "
                f"{network.output_channels}; networks of RGB images can be used"
            )
        self.net = network.model.float().train(self.training and not self.frozen)
        self.net.requires_grad_(not self.frozen)
        self.scale = int(network.scale)
        self._needs = network.size_requirements
        # How the network is called; spandrel's own call is for inference alone, and clamps.
        self._call = network._call_fn
        self._derives = self._derive()
        if self._derives:
            once = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
            self._derive()
            if any(not torch.equal(t, once[name]) for name, t in self.net.state_dict().items()):
                name = network.architecture.name
                raise ConfigError(f"{what}: {name}'s weights change whenever it is used")

    def _derive(self) -> bool:
        """Have the network write what it derives from its weights when it evaluates, as SPAN does;
        whether there is any. So weights, and their hash, are the same before and after."""
        if self.net is None or not self._derives:
            return False
        before = self.net.state_dict()  # kept, so that no new tensor gets an old one's place
        written = {name: (tensor.data_ptr(), tensor._version) for name, tensor in before.items()}
        image = next(self.net.parameters()).new_zeros(1, 3, 32, 32)
        with evaluating(self.net):
            self.restore(image)
        return any(
            written[name] != (tensor.data_ptr(), tensor._version)
            for name, tensor in self.net.state_dict().items()
        )

    def before_export(self, size: tuple[int, int]) -> None:
        """Have nothing to derive any more: a graph can't write weights.

        Raises:
            ConfigError: a network that can't be kept from it.
        """
        if self.net is None or not self._derives:
            return
        derive: list[Any] = [m for m in self.net.modules() if hasattr(m, "update_params")]
        if not derive:
            raise ConfigError(f"{type(self.net).__name__} writes weights when used: no graph can")
        for module in derive:
            module.update_params = _nothing  # SPAN's

    def adopt_state(self, state: Mapping[str, Tensor]) -> None:
        """Become the network that a checkpoint of this front-end holds, where none is known yet."""
        weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        if self.net is None and weights:
            self._build(weights, "checkpoint")

    def prepare(self, dataset: Any) -> None:
        """Before training: refuse to begin without a network.

        Raises:
            ConfigError: names the key.
        """
        self._network()

    def _network(self) -> nn.Module:
        if self.net is None:
            raise ConfigError(f"{KEY}: name a super-resolution network's file")
        return self.net

    def train(self, mode: bool = True) -> Spandrel:
        """Set the mode; a frozen network stays in evaluation."""
        super().train(mode)
        if self.net is not None and self.frozen:
            self.net.eval()
        return self

    def restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB on the 0-1 scale to the same."""
        net = self._network()
        height, width = (int(side) for side in images.shape[-2:])
        if self.feed == "reduced":
            images = resized(images, -(-height // self.scale), -(-width // self.scale))
        rows, columns = (int(side) for side in images.shape[-2:])
        right, below = self._needs.get_padding(columns, rows)
        if right or below:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        restored = self._call(net, images)
        restored = restored[..., : rows * self.scale, : columns * self.scale]
        return resized(restored, height, width)


def _nothing() -> None:
    pass


def _settled(frontend: Spandrel, _: Any) -> None:
    frontend._derive()


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, h, w) to (B, 3, height, width) by Pillow's bicubic kernel, not rounded or clamped."""
    rows, columns = (int(side) for side in images.shape[-2:])
    if rows != height:
        images = resampling(rows, height, "bicubic").to(images) @ images
    if columns != width:
        images = images @ resampling(columns, width, "bicubic").to(images).T
    return images
