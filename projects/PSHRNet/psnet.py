"""PS-HRNet's own wiring: a pseudo-siamese pair of a frozen HR teacher and an LR student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastreid.config import configurable
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.samples import Batch
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.backbones import build_backbone
from lrreid_ext.modeling.contract import Represents, StepOutput
from lrreid_ext.modeling.losses import pseudo_siamese
from lrreid_ext.modeling.meta_arch import Pipeline, Step, build_heads
from lrreid_ext.registry import META_ARCH_REGISTRY
from lrreid_ext.weights import load_strictly, read_state_dict


class Branch(nn.Module):
    """Backbone and head of one side of the pair.

    Args:
        backbone, heads: the parts. The head must offer ``represent(features) -> dict``.
    """

    def __init__(self, backbone: nn.Module, heads: nn.Module) -> None:
        super().__init__()
        if not isinstance(heads, Represents):
            raise ConfigError(
                f"MODEL.HEADS.NAME: {type(heads).__name__} has no represent(features), which "
                "PSHRNet's teacher needs; HRNetReIDHead and LinearNeckHead have"
            )
        self.backbone = backbone
        self.heads = heads

    def load(self, path: str) -> None:
        """Take the weights of a trained model's backbone and head (or of its own teacher).

        Raises:
            FileNotFoundError, WeightsError: no such file, or weights that don't fit.
        """
        state = read_state_dict(path, "PSHRNET.TEACHER_WEIGHTS")
        prefix = "teacher." if any(k.startswith("teacher.") for k in state) else ""
        parts = (f"{prefix}backbone.", f"{prefix}heads.")
        state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(parts)}
        load_strictly(self, state, f"PSHRNET.TEACHER_WEIGHTS: {path}")

    def represent(self, images: Tensor) -> dict[str, Any]:
        """All outputs of the head for normalised images (B, 3, H, W), in either mode."""
        heads: Any = self.heads
        return heads.represent(self.backbone(images))


@META_ARCH_REGISTRY.register()
class PSHRNet(Pipeline):
    """PS-HRNet (Zhang et al., "Deep High-Resolution Representation Learning for Cross-Resolution
    Person Re-Identification"), and its pseudo-siamese training on any backbone.

    Steps: ``teacher`` trains HRNet-ReID-H on the images it is shown (Eq. 10; show it HR ones);
    ``student`` trains front-end and HRNet-ReID-L on LR images while the frozen teacher reads their
    HR twins (Eq. 12). What is evaluated follows the step: the teacher alone, or front-end and
    student, query and gallery alike.

    Args:
        teacher: HRNet-ReID-H.
        ps_weight: lambda_PS of Eq. 12; 0 leaves the loss and the teacher's pass out.
        ps_terms: what teacher and student compare (Eq. 11): ``seq1`` ... ``seq5``, or any entry of
            the head's outputs such as ``pred_class_logits`` (the paper's l_c) and ``features``.
        others: see :class:`Pipeline`.
    """

    @configurable
    def __init__(
        self, *, teacher: Branch, ps_weight: float, ps_terms: Sequence[str], **others: Any
    ) -> None:
        super().__init__(**others)
        self.teacher = teacher
        self.ps_weight = ps_weight
        self.ps_terms = tuple(ps_terms)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Keyword arguments of ``__init__`` from a config."""
        teacher = Branch(build_backbone(cfg), build_heads(cfg))
        if cfg.PSHRNET.TEACHER_WEIGHTS:
            teacher.load(cfg.PSHRNET.TEACHER_WEIGHTS)
        return {
            **super().from_config(cfg),
            "teacher": teacher,
            "ps_weight": cfg.PSHRNET.PS_WEIGHT,
            "ps_terms": cfg.PSHRNET.PS_TERMS,
        }

    def embed(self, batch: Batch) -> Tensor:
        """Features (B, D): the teacher's in its step, else front-end and student."""
        if self.step != "teacher":
            return super().embed(batch)
        return self.teacher.heads(self.teacher.backbone(self.normalise(batch["images"])))

    @property
    def steps(self) -> dict[str, Step]:
        """Steps ``student`` and ``teacher``, and ``sr`` of :class:`Pipeline`."""
        return {"student": self.train_student, "teacher": self.train_teacher, "sr": self.train_sr}

    def train_teacher(self, batch: Batch) -> StepOutput:
        """Phase 1: identity losses of HRNet-ReID-H (Eq. 10)."""
        maps = self.teacher.backbone(self.normalise(batch["images"]))
        outputs = self.teacher.heads(maps, batch["targets"])
        return StepOutput(*self.identity_losses(outputs, batch["targets"]))

    def train_student(self, batch: Batch) -> StepOutput:
        """Phase 2: L_ID + lambda_SR L_SR + lambda_PS L_PS (Eq. 12)."""
        restored = self.restore(batch)
        outputs, losses = self.identify(restored.images, batch)
        identity, figures = self.identity_losses(outputs, batch["targets"])
        losses |= identity
        losses |= self.frontend_losses(restored, batch)
        if self.ps_weight > 0:
            with torch.no_grad():
                guide = self.teacher.represent(self.normalise(batch["images_hr"]))
            losses["loss_ps"] = self.ps_weight * pseudo_siamese(
                self.terms(guide), self.terms(outputs)
            )
        return StepOutput(losses, figures)

    def terms(self, outputs: dict[str, Any]) -> list[Tensor]:
        """The tensors of a head's outputs that :attr:`ps_terms` names."""
        chosen = []
        for name in self.ps_terms:
            sequences = outputs.get("sequences", ())
            available = {f"seq{i + 1}": s for i, s in enumerate(sequences)}
            available |= {k: v for k, v in outputs.items() if isinstance(v, Tensor)}
            if name not in available:
                raise ConfigError(
                    f"PSHRNET.PS_TERMS: this head gives no {name!r}, only {', '.join(available)}"
                )
            chosen.append(available[name])
        return chosen
