"""SING's own wiring: three weight-sharing streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastreid.config import configurable

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import HR_TWIN, LR_TWIN, SYNTHETIC_TWIN, Batch, rows_of, with_twin
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.contract import StepOutput
from lrreid_ext.modeling.frontends import FrontendOutput
from lrreid_ext.modeling.meta_arch import Pipeline, Step, take
from lrreid_ext.registry import META_ARCH_REGISTRY

# The twin that each stream sees.
TWINS = {"h": HR_TWIN, "h2l": SYNTHETIC_TWIN, "l": LR_TWIN}
STREAMS = tuple(TWINS)
# What is wrong with a phase whose batches lack a stream's twin.
NO_TWIN = {
    "h2l": "INPUT.LR.SYNTHETIC: SING's stream h2l needs the anchor's factor; give the phase "
    "INPUT: {LR: {SYNTHETIC: 2}}, or leave h2l out of SING.STREAMS",
    "l": "INPUT.LR.TRAIN_ON: with hr there are no LR twins, which SING's stream l needs; give the "
    "phase TRAIN_ON: lr, or leave l out of SING.STREAMS",
}


@META_ARCH_REGISTRY.register()
class SING(Pipeline):
    """SING (Jiao et al., AAAI 2018, "Deep Low-Resolution Person Re-Identification").

    Step ``joint``: three streams share all weights. ``h`` are HR images, which by-pass the
    front-end; ``h2l`` the same images reduced by the anchor's factor (INPUT.LR.SYNTHETIC) and
    restored; ``l`` LR images, of whatever factors, restored. All three pass the re-ID network as
    one batch; their identity losses are added up (Eq. 3), and the restored ``h2l`` is held against
    ``h`` by the front-end's loss, weighed by alpha, MODEL.SR.LOSS_WEIGHT (Eq. 2, 5).

    Of an image known only small (a genuine low-resolution camera, INPUT.LR.CAMERAS), only the
    stream ``l`` sees anything. Evaluate with MODEL.SR.APPLY lr: HR images are not restored.

    The paper's ``l`` holds images known only small and no others; ``lr_stream`` "all" adds the
    twins of the other images, reduced by a factor drawn from INPUT.LR.

    Args:
        streams: which of ``h``, ``h2l`` and ``l`` are trained on. Without ``h2l`` there is no
            front-end loss either: nothing pairs restored images with HR ones (Table 3).
        lr_stream: ``all`` or ``small``: which images the stream ``l`` sees.
        others: see :class:`Pipeline`.

    Raises:
        ConfigError: no stream, or an unknown one.
    """

    @configurable
    def __init__(
        self, *, streams: Sequence[str] = STREAMS, lr_stream: str = "all", **others: Any
    ) -> None:
        super().__init__(**others)
        if lr_stream not in ("all", "small"):
            raise ConfigError(f"SING.LR_STREAM: {lr_stream!r} is neither 'all' nor 'small'")
        self.lr_stream = lr_stream
        if not streams or set(streams) - set(STREAMS):
            raise ConfigError(f"SING.STREAMS: {list(streams)} must be some of {', '.join(STREAMS)}")
        self.streams = tuple(s for s in STREAMS if s in streams)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        keys = {"streams": cfg.SING.STREAMS, "lr_stream": cfg.SING.LR_STREAM}
        return {**super().from_config(cfg), **keys}

    def check_phase(self, cfg: CfgNode) -> None:
        """Raise ConfigError if a phase of step ``joint`` lacks a stream's twin."""
        if self.step == "joint" and "h2l" in self.streams and not cfg.INPUT.LR.SYNTHETIC:
            raise ConfigError(NO_TWIN["h2l"])
        if self.step == "joint" and "l" in self.streams and cfg.INPUT.LR.TRAIN_ON == "hr":
            raise ConfigError(NO_TWIN["l"])

    @property
    def steps(self) -> dict[str, Step]:
        """Step ``joint``, and those of :class:`Pipeline`."""
        return {"joint": self.train_joint, **super().steps}

    def train_joint(self, batch: Batch) -> StepOutput:
        """The joint loss (Eq. 5); identity losses are logged by stream, as ``loss_..._h2l``.

        Raises:
            ConfigError: the batch leaves all streams empty.
        """
        parts = {name: self.stream(name, batch) for name in self.streams}
        restored = {
            name: FrontendOutput(part["images"])
            if name == "h"
            else self.frontend(part["images"], part["native_size"])
            for name, part in parts.items()
        }
        joined = Batch(
            targets=torch.cat([part["targets"] for part in parts.values()]),
            native_size=torch.cat([part["native_size"] for part in parts.values()]),
            camids=torch.cat([part["camids"] for part in parts.values()]),
        )
        if not len(joined["targets"]):
            raise ConfigError(
                "SING.STREAMS, SING.LR_STREAM: a batch held no image that the streams "
                f"{', '.join(self.streams)} see"
            )
        images = torch.cat([output.images for output in restored.values()])
        outputs, losses = self.identify(images, joined)

        right = images.new_zeros(())
        start, total = 0, len(images)
        for name, part in parts.items():
            count = len(part["targets"])
            # Of a stream that is empty in this batch, all images' losses, times 0: every process
            # has to give the same ones.
            share = take(outputs, slice(start, start + count), total) if count else outputs
            targets = part["targets"] if count else joined["targets"]
            identity, figures = self.identity_losses(share, targets)
            for key, value in identity.items():
                losses[f"{key}_{name}"] = value if count else 0.0 * value
            right = right + figures["cls_accuracy"] * count
            start += count
        if "h2l" in parts:
            # Where no image has an HR twin, the pipeline makes a loss of 0 of the others.
            name = "h2l" if len(parts["h2l"]["targets"]) else "l"
            losses |= self.frontend_losses(restored[name], parts[name])
        return StepOutput(losses, {"cls_accuracy": right / total})

    def stream(self, name: str, batch: Batch) -> Batch:
        """The images that one stream sees, of the batch, with their twin as ``images``."""
        chosen = batch["has_hr"]
        if name == "l":
            chosen = ~chosen if self.lr_stream == "small" else torch.ones_like(chosen)
        return with_twin(rows_of(batch, chosen), TWINS[name])
