"""PSNR and SSIM of restored images against their HR twins, per image."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from fastreid.data.transforms import build_transforms
from fastreid.evaluation import DatasetEvaluator
from tabulate import tabulate
from torch import Tensor, nn

from lrreid_ext.config import CfgNode
from lrreid_ext.data.pictures import read_picture
from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, Batch, TestSet, rows_of
from lrreid_ext.errors import ConfigError
from lrreid_ext.evaluation.features import gather_rows
from lrreid_ext.evaluation.groups import query_groups
from lrreid_ext.evaluation.scored import plain_info
from lrreid_ext.files import write_json
from lrreid_ext.modeling.contract import Restores
from lrreid_ext.registry import EVALUATOR_REGISTRY
from lrreid_ext.results import group_label
from lrreid_ext.results.provenance import provenance

PIXELS = (0.0, 255.0)

# dB; of equal images, whose PSNR would make any mean infinite, and of nearly equal ones.
PSNR_CAP = 100.0

FIGURES = ("PSNR", "SSIM", "PSNR_input", "SSIM_input")

logger = logging.getLogger(__name__)


def psnr(restored: Tensor, hr: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, over its three colour channels together.

    Args:
        restored, hr: (B, 3, H, W) RGB, 0-255; clamped to that range, not rounded to whole levels.

    Returns:
        (B,) float32 in dB: 10 log10(255^2 / MSE), at most :data:`PSNR_CAP`, which equal images get.

    Raises:
        ValueError: not two batches of images of one shape.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _check_shapes(restored, hr)
    values = peak_signal_noise_ratio(
        restored.float(), hr.float(), data_range=PIXELS, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=PSNR_CAP)


def ssim(restored: Tensor, hr: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al., "Image Quality Assessment: From Error
    Visibility to Structural Similarity", Eq. 13), the mean over its pixels and colour channels.

    The paper's constants: an 11x11 Gaussian window of deviation 1.5, K1 = 0.01 and K2 = 0.03.
    Images are mirrored at their borders, so that every pixel counts.

    Args:
        restored, hr: (B, 3, H, W) RGB, 0-255, at least 6 pixels a side; clamped to that range, not
            rounded to whole levels.

    Returns:
        (B,) float32, at most 1.

    Raises:
        ValueError: not two batches of images of one shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_shapes(restored, hr)
    # A GPU may round float32 to TF32 in convolutions, and variances here are small differences.
    dtype = torch.float64 if hr.is_cuda else torch.float32
    values: Any = structural_similarity_index_measure(
        restored.to(dtype), hr.to(dtype), data_range=PIXELS, reduction="none"
    )
    per_image: Tensor = values.float()
    return per_image


def twin_files(test_set: TestSet) -> dict[int, str]:
    """The HR image of every low-resolution query.

    An image that is degraded on reading (groups ``x2``, ``x3`` ...) has its own file for a twin.
    The k-th image of ``query``, where its factor is above 1, has the k-th of ``query_hr``.

    Returns:
        HR files by position in the test set. Empty for sets of genuine LR images, and for those
        whose images aren't degraded at all.

    Raises:
        ValueError: ``query_hr`` and ``query`` are not in step.
    """
    samples = test_set.samples
    files = {i: s.path for i, s in enumerate(samples) if s.degrade > 1 and s.group != GALLERY}
    queries = [i for i, s in enumerate(samples) if s.group == QUERY]
    twins = [s for s in samples if s.group == QUERY_HR]
    if not twins:
        return files
    if len(twins) != len(queries):
        raise ValueError(
            f"test set {test_set.name!r}: {len(queries)} images in 'query' but {len(twins)} in "
            "'query_hr'; each query needs its HR twin at the same place of that group"
        )
    for i, twin in zip(queries, twins, strict=True):
        query = samples[i]
        if (query.pid, query.camid) != (twin.pid, twin.camid):
            raise ValueError(
                f"test set {test_set.name!r}: {query.path} shows identity {query.pid} in camera "
                f"{query.camid}, but its twin {twin.path} {twin.pid} in {twin.camid}; 'query' and "
                "'query_hr' must be in one order"
            )
        if query.factor > 1:
            files.setdefault(i, twin.path)
    return files


@EVALUATOR_REGISTRY.register()
class ImageQualityEvaluator(DatasetEvaluator):
    """Compares each LR query, as the model's front-end restores it, with its HR twin.

    The restored image is ``model.restore(batch).images``, so MODEL.SR.APPLY counts; the twin is
    read by the test transform, at INPUT.SIZE_TEST. The input (the loader's bicubic enlargement) is
    compared as well: the difference is the front-end's gain. Figures are means over images; the
    mean of decibels is not the PSNR of the pooled error. The rest of the network is not run.

    A test set without HR twins of LR queries gives no figures, and a warning.

    Args:
        cfg: INPUT.SIZE_TEST, and MODEL.WEIGHTS and DEVICE for the record.
        test_set: the images, in the order of ``index``.
        output_dir: where ``quality_<test set>.json`` is written; None or "" for nowhere.

    Raises:
        ValueError: ``query`` and ``query_hr`` of the test set are not in step.
    """

    def __init__(self, cfg: CfgNode, test_set: TestSet, output_dir: str | None = None) -> None:
        self.cfg = cfg
        self.test_set = test_set
        self.output_dir = output_dir
        self.twins = twin_files(test_set)
        self._transform = build_transforms(cfg, is_train=False)
        self._place = torch.full((len(test_set.samples),), -1)
        self._place[list(self.twins)] = torch.arange(len(self.twins))
        self.reset()
        without_twin = sum(
            s.group == QUERY and s.factor > 1 and i not in self.twins
            for i, s in enumerate(test_set.samples)
        )
        if without_twin:
            logger.warning(
                "%s: %d low-resolution queries have no HR twin, and are left out of image quality. "
                "A recipe's test set has the twins if TEST.HR is True",
                *(test_set.name, without_twin),
            )
        elif not self.twins:
            logger.warning("%s: no image quality, for no query has an HR twin", test_set.name)

    def reset(self) -> None:
        """Forget the images of an earlier round."""
        self._rows: list[Tensor] = []
        self._places: list[Tensor] = []

    def attach(self, model: nn.Module) -> nn.Module:
        """What is run in the model's place: its front-end, for the images that have twins.

        Raises:
            ConfigError: the model has no ``restore``.
        """
        if not isinstance(model, Restores):
            raise ConfigError(
                "TEST.EVALUATORS: ImageQualityEvaluator needs a model with restore(batch), such as "
                f"MODEL.META_ARCHITECTURE Pipeline; {type(model).__name__} has none"
            )
        return _Restoration(model, self._place)

    def process(self, inputs: Batch, outputs: Tensor) -> None:
        """Score one batch.

        Args:
            inputs: ``images`` (B, 3, H, W) RGB 0-255, and ``index`` (B,) int64, positions in
                ``test_set.samples``.
            outputs: (M, 3, H, W) RGB 0-255, any device: the restored images of those that have
                twins, in the batch's order.
        """
        rows, places = _paired(self._place, inputs["index"])
        if not len(rows):
            return
        samples = [int(i) for i in inputs["index"][rows.to(inputs["index"].device)]]
        hr = torch.stack([self._transform(read_picture(self.twins[i])) for i in samples])
        hr = hr.to(outputs.device)
        lr = inputs["images"][rows.to(inputs["images"].device)].to(outputs.device)
        scores = [psnr(outputs, hr), ssim(outputs, hr), psnr(lr, hr), ssim(lr, hr)]
        self._rows.append(torch.stack(scores, 1).cpu())
        self._places.append(places)

    def evaluate(self) -> OrderedDict[str, float]:
        """Average, print the table, write the JSON.

        Returns:
            By ``quality/<group>/<figure>``: PSNR (dB) and SSIM of the restored images, PSNR_input
            and SSIM_input of those that the front-end was given; groups are ``query``, its parts
            by factor (``query@2``), and ``x2`` ... On all processes but the first, and for a test
            set without twins, an empty dict.

        Raises:
            ValueError: images missing or scored twice, or a front-end that gives NaN.
        """
        if not self.twins:
            return OrderedDict()
        scores = gather_rows(self._rows, self._places, self.test_set, len(self.twins))
        if scores is None:
            return OrderedDict()
        if not bool(torch.isfinite(scores).all()):
            bad = int((~torch.isfinite(scores).all(1)).sum())
            raise ValueError(
                f"test set {self.test_set.name!r}: the front-end gives pixels that are not numbers "
                f"in {bad} of {len(scores)} images"
            )
        groups = self._groups(scores)
        logger.info("%s: image quality\n%s", self.test_set.name, quality_table(groups))
        if self.output_dir:
            path = os.path.join(self.output_dir, f"quality_{self.test_set.name}.json")
            content = {
                "test_set": self.test_set.name,
                "manifest_hash": self.test_set.manifest_hash,
                "info": plain_info(self.test_set),
                "compared": "per image on RGB, clamped to 0-255; means over the images",
                "size": list(self.cfg.INPUT.SIZE_TEST),
                "psnr_cap": PSNR_CAP,
                "groups": groups,
                **provenance(self.cfg.MODEL.WEIGHTS, self.cfg.MODEL.DEVICE),
            }
            write_json(path, content)
            logger.info("Image quality written to %s", path)
        return OrderedDict(
            (f"quality/{name}/{figure}", entry[figure])
            for name, entry in groups.items()
            for figure in FIGURES
        )

    def _groups(self, scores: Tensor) -> dict[str, dict[str, Any]]:
        """Number of images and mean figures of every group that has twins."""
        groups: dict[str, dict[str, Any]] = {}
        for name, at in query_groups(self.test_set, self.cfg.TEST.FACTOR_BINS).items():
            places = self._place[torch.from_numpy(at)]
            chosen = scores[places[places >= 0]].double()
            if len(chosen):
                means = [round(v, 6) for v in chosen.mean(0).tolist()]
                groups[name] = {"images": len(chosen), **dict(zip(FIGURES, means, strict=True))}
        return groups


def quality_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows: groups; columns: PSNR in dB and SSIM, of the input and of what was restored."""
    digits = {"PSNR_input": 2, "PSNR": 2, "SSIM_input": 4, "SSIM": 4}
    rows = [
        [group_label(name), str(entry["images"])]
        + [f"{entry[column]:.{places}f}" for column, places in digits.items()]
        for name, entry in groups.items()
    ]
    headers = ["query", "images"]
    headers += [f"{f}\n{of}" for f in ("PSNR (dB)", "SSIM") for of in ("input", "restored")]
    align = ["left"] + ["right"] * 5
    return tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)


class _Restoration(nn.Module):
    """The part of a model that is scored: restores a batch's images that have twins."""

    def __init__(self, model: nn.Module, place: Tensor) -> None:
        super().__init__()
        self.model: Any = model
        self.place = place

    def forward(self, batch: Batch) -> Tensor:
        rows, _ = _paired(self.place, batch["index"])
        if not len(rows):
            return batch["images"][:0]
        restored: Tensor = self.model.restore(rows_of(batch, rows)).images
        return restored


def _paired(place: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a batch that have twins, and their places among the pairs; on the CPU."""
    places = place[index.cpu()]
    rows = (places >= 0).nonzero()[:, 0]
    return rows, places[rows]


def _check_shapes(restored: Tensor, hr: Tensor) -> None:
    if restored.shape != hr.shape or hr.ndim != 4 or hr.shape[1] != 3:
        raise ValueError(
            "restored and HR images must be (B, 3, H, W), both alike, not "
            f"{tuple(restored.shape)} and {tuple(hr.shape)}"
        )
