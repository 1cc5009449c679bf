"""Training samples that carry their low-resolution twin, and test images of any group."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fastreid.data.common import CommDataset
from fastreid.data.data_utils import read_image
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.samples import TestSet
from lrreid_ext.data.seeding import derive, seeded

Transform = Callable[[Image.Image], Tensor]


class PairedDataset(CommDataset):
    """A fastreid training set whose samples have two twins: as they are, and degraded.

    Indexed by ``(index, seed)``: the seed decides the factor and every augmentation. The transform
    runs on both twins from the same seed, so that flips, crops and erased boxes agree; degradation
    comes first, at the file's own size, as a distant camera would have it.

    Args:
        img_items: ``(path, identity, camera)`` tuples.
        transform: fastreid's training transform, resizing included; PIL RGB to (3, H, W), 0-255.
        factors: factors to draw from.
        span: if given, the factor is drawn uniformly from this range instead.
        kernel: degradation kernel.
        lr_probability: the chance that ``lr_mask`` is set.
    """

    def __init__(
        self,
        img_items: list[tuple[str, Any, Any]],
        transform: Transform,
        *,
        factors: Sequence[float] = (2, 3, 4),
        span: tuple[float, float] | None = None,
        kernel: str = "bicubic",
        lr_probability: float = 0.5,
    ) -> None:
        super().__init__(img_items, transform, relabel=True)
        self.factors = tuple(factors)
        self.span = span
        self.kernel = kernel
        self.lr_probability = lr_probability

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample.

        Returns:
            ``images`` and ``images_lr`` (3, H, W) RGB 0-255 float; ``native_size`` and
            ``native_size_lr`` (2,) int64, height and width in pixels before resizing; ``factor``
            float; ``lr_mask`` bool, whether a training on mixed resolutions takes the LR twin;
            ``targets``, ``camids`` int; ``img_paths`` str.
        """
        index, seed = key if isinstance(key, tuple) else (key, derive("sample", key))
        path, pid, camid = self.img_items[index]
        image = read_image(path, "RGB")
        with seeded(derive("factor", seed)):
            factor = random.uniform(*self.span) if self.span else float(random.choice(self.factors))
            mask = random.random() < self.lr_probability
        small = degrade(image, factor, self.kernel)
        with seeded(seed):
            hr = self.transform(image)
        with seeded(seed):
            lr = self.transform(small)
        return {
            "images": hr,
            "images_lr": lr,
            "native_size": torch.tensor(image.size[::-1]),
            "native_size_lr": torch.tensor(small.size[::-1]),
            "factor": factor,
            "lr_mask": mask,
            "targets": self.pid_dict[pid],
            "camids": self.cam_dict[camid],
            "img_paths": path,
        }


class TestDataset(Dataset):
    """The images of a :class:`TestSet`, degraded on reading where a sample asks for it."""

    __test__ = False  # pytest must not take this for a test class

    def __init__(self, test_set: TestSet, transform: Transform) -> None:
        self.test_set = test_set
        self.transform = transform

    def __len__(self) -> int:
        return len(self.test_set.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``images`` (3, H, W) RGB 0-255 float, ``native_size`` (2,) int64, ``factor`` float,
        ``targets``, ``camids`` and ``index`` int, ``img_paths`` str."""
        sample = self.test_set.samples[index]
        image = read_image(sample.path, "RGB")
        if sample.degrade > 1:
            image = degrade(image, sample.degrade, sample.kernel)
        return {
            "images": self.transform(image),
            "native_size": torch.tensor(image.size[::-1]),
            "factor": float(sample.factor),
            "targets": sample.pid,
            "camids": sample.camid,
            "index": index,
            "img_paths": sample.path,
        }


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors and numbers; keep strings as lists."""
    out: dict[str, Any] = {}
    for key, value in batch[0].items():
        column = [sample[key] for sample in batch]
        if isinstance(value, Tensor):
            out[key] = torch.stack(column)
        elif isinstance(value, str):
            out[key] = column
        else:
            out[key] = torch.tensor(column)
    return out
