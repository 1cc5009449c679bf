"""Losses: pure functions, and the entries of ``LOSS_REGISTRY``."""

from lrreid_ext.modeling.losses.adversarial import fool, mean_over, tell_apart
from lrreid_ext.modeling.losses.functional import (
    batch_hard_triplet,
    foreground_mse,
    gaussian_mask,
    image_loss,
    l1_image,
    mse_image,
    no_loss,
    pseudo_siamese,
    sequence_triplet,
    smooth_cross_entropy,
)
from lrreid_ext.modeling.losses.registered import (
    BatchHardTripletLoss,
    CircleLoss,
    Cosface,
    CrossEntropyLoss,
    SequenceTripletLoss,
    SmoothCrossEntropyLoss,
    TripletLoss,
)

__all__ = [
    "BatchHardTripletLoss",
    "CircleLoss",
    "Cosface",
    "CrossEntropyLoss",
    "SequenceTripletLoss",
    "SmoothCrossEntropyLoss",
    "TripletLoss",
    "batch_hard_triplet",
    "fool",
    "foreground_mse",
    "gaussian_mask",
    "image_loss",
    "l1_image",
    "mean_over",
    "mse_image",
    "no_loss",
    "pseudo_siamese",
    "sequence_triplet",
    "smooth_cross_entropy",
    "tell_apart",
]
