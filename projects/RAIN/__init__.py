"""RAIN: see README.md."""

from fastreid.config import CfgNode

from projects.RAIN.parts import HRDecoder, ResolutionCritic
from projects.RAIN.rain import RAIN

__all__ = ["RAIN", "HRDecoder", "ResolutionCritic", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add RAIN's keys."""
    cfg.RAIN = CfgNode()
    # The levels of the backbone that meet a resolution discriminator each, by module names (the
    # paper's f4 and f5 are layer3 and layer4 of a ResNet); []: no adversarial training.
    cfg.RAIN.LEVELS = ["layer3", "layer4"]
    # Width of the discriminators.
    cfg.RAIN.CRITIC_WIDTH = 256
    # Weight of the adversarial loss of each level, and of the discriminators' own.
    cfg.RAIN.ADVERSARIAL_WEIGHT = 0.01
    cfg.RAIN.CRITIC_WEIGHT = 0.01
    # Weight of the reconstruction loss; 0: no decoder.
    cfg.RAIN.RECONSTRUCTION_WEIGHT = 1.0
    # The decoder reads this level, and its up-convolutions have these widths before the last, which
    # gives RGB ([]: the paper's shares of the level's channels, a half to a 32nd, 16 at least).
    cfg.RAIN.DECODER = CfgNode()
    cfg.RAIN.DECODER.LEVEL = "layer4"
    cfg.RAIN.DECODER.WIDTHS = []
    # Take the losses of HR and of LR images by themselves and add them up (Eq. 2, 3 and 6); False:
    # of all images of a batch together.
    cfg.RAIN.BY_RESOLUTION = True
