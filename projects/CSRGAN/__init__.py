"""CSR-GAN: see README.md."""

from fastreid.config import CfgNode

from projects.CSRGAN.csrgan import CSRGAN
from projects.CSRGAN.discriminator import Discriminator
from projects.CSRGAN.vgg import VGG19

__all__ = ["CSRGAN", "VGG19", "Discriminator", "add_config"]


def add_config(cfg: CfgNode) -> None:
    """Add CSR-GAN's keys."""
    cfg.CSRGAN = CfgNode()
    # Weight of the VGG loss (alpha, Eq. 6), a mean over the maps; 0 leaves it out.
    cfg.CSRGAN.VGG_WEIGHT = 2.0e-6
    # Weight of the adversarial loss (beta, Eq. 6); 0 leaves it out, and the discriminators too.
    cfg.CSRGAN.ADVERSARIAL_WEIGHT = 1.0e-3
    # Weight of the common-human loss (Eq. 8); 0 leaves it out. What it compares of VGG's classes:
    # logits or probabilities.
    cfg.CSRGAN.COMMON_WEIGHT = 1.0
    cfg.CSRGAN.COMMON = "logits"
    # VGG-19 for the VGG and the common-human loss: a file with torchvision's names (.pth or
    # .safetensors), or a model of timm's hub (vgg19.tv_in1k) to download.
    cfg.CSRGAN.VGG = CfgNode()
    cfg.CSRGAN.VGG.WEIGHTS = ""
    # Where the VGG loss looks: "convi_j", after the j-th convolution before the i-th max pooling.
    cfg.CSRGAN.VGG.LAYER = "conv5_4"
    # Discriminators, one for each stage: width of the first convolution, width of the hidden layer,
    # and what it reads: the map's mean (POOL), or the map itself as SRGAN's does, which has most of
    # its parameters there.
    cfg.CSRGAN.DISCRIMINATOR = CfgNode()
    cfg.CSRGAN.DISCRIMINATOR.WIDTH = 64
    cfg.CSRGAN.DISCRIMINATOR.HIDDEN = 1024
    cfg.CSRGAN.DISCRIMINATOR.POOL = True
