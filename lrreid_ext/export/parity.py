"""Whether an exported model computes what the project's own evaluation does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.errors import ParityError
from lrreid_ext.export.deployable import Crop, expected, pack

__all__ = ["BATCHES", "Parity"]

# Images in each batch that is compared.
BATCHES = (1, 3, 8)
# Native sizes as shares of the network's input: 1/8 to more than all of it, in turn.
SHARES = (1 / 4, 1.0, 1 / 2, 1 / 8, 1.4, 1 / 3, 0.9, 1 / 6)
# Largest difference that is allowed, as a share of the largest value.
TOLERANCE = 1e-4


class Parity:
    """Batches of crops of mixed native sizes, and the embeddings that they must get.

    Args:
        cfg, model: of :func:`lrreid_ext.trained.load_trained`.
        resized: whether the exported model takes images at the network's input size.
        tolerance: largest difference allowed, as a share of the largest value expected.
        seed: of the crops' pixels, which are noise, and of their proportions.

    Attributes:
        batches: images (B, 3, H, W) uint8, native sizes (B, 2) int64, embeddings (B, ...) float32.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        *,
        resized: bool = False,
        tolerance: float = TOLERANCE,
        seed: int = 0,
    ) -> None:
        self.tolerance = tolerance
        height, width = (int(side) for side in cfg.INPUT.SIZE_TEST)
        draw = np.random.default_rng(seed)

        def crop(index: int) -> Crop:
            share = SHARES[index % len(SHARES)]
            sides = (height * share, width * share * draw.uniform(0.8, 1.2))
            shape = [max(1, round(side)) for side in sides]
            return draw.integers(0, 256, (*shape, 3), dtype=np.uint8)

        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for count in BATCHES:
            crops = [crop(start + i) for i in range(count)]
            start += count
            images, native = pack(crops, (height, width) if resized else None)
            self.batches.append((images, native, expected(cfg, model, crops)))

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """Images and native sizes to trace a model with: several, so that no size is fixed to 1."""
        images, native, _ = next(batch for batch in self.batches if len(batch[1]) > 1)
        return images, native.clone()

    def check(self, run: Callable[[Tensor, Tensor], Tensor], name: str) -> dict[str, Any]:
        """Compare.

        Args:
            run: the exported model: images and native sizes to embeddings.
            name: of its file, for messages.

        Returns:
            ``largest_difference`` (a share of the largest value), ``tolerance`` and ``batches``.

        Raises:
            ParityError: it differs by more than the tolerance, or gives another shape.
        """
        worst = 0.0
        for images, native, embeddings in self.batches:
            exported = run(images, native)
            if exported.shape != embeddings.shape:
                raise ParityError(
                    f"{name}: embeddings {list(exported.shape)} where the model gives "
                    f"{list(embeddings.shape)}; nothing was written"
                )
            scale = embeddings.abs().max().clamp(min=1e-12)
            difference = float((exported - embeddings).abs().max() / scale)
            # NaN compares as less than anything.
            worst = max(worst, difference if difference == difference else float("inf"))
        if worst > self.tolerance:
            raise ParityError(
                f"{name}: embeddings differ from the model's by {worst:.2g} of their largest "
                f"value, more than {self.tolerance:.2g}; nothing was written. A model that routes "
                "images by what a tensor holds must do so by lrreid_ext.modeling.routing"
            )
        return {
            "largest_difference": worst,
            "tolerance": self.tolerance,
            "batches": [len(native) for _, native, _ in self.batches],
        }
