"""Training samples that carry their low-resolution twin, and test images of any group."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from fastreid.data.common import CommDataset
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lrreid_ext.data.degrade import Draws, degrade, draw_factor, draw_width
from lrreid_ext.data.folds import UNLABELLED, Item
from lrreid_ext.data.pictures import read_picture
from lrreid_ext.data.resolution import check_native_size, native_size
from lrreid_ext.data.samples import (
    HR_TWIN,
    LR_TWIN,
    SYNTHETIC_TWIN,
    Batch,
    Sample,
    TestSet,
    with_twin,
)
from lrreid_ext.data.seeding import derive, seeded
from lrreid_ext.errors import ConfigError

Transform = Callable[[Image.Image], Tensor]


class PairedDataset(CommDataset):
    """A fastreid training set whose samples have two twins: as they are, and degraded.

    Indexed by ``(index, seed)``: the seed decides the factor and every augmentation. The transform
    runs on both twins from the same seed, so that flips, crops and erased boxes agree; degradation
    comes first, at the file's own size, as a distant camera would have it.

    Images of some cameras may be known only as low-resolution ones: genuinely so, or because the
    training is to know nothing else of them. Both twins are then the same small image.

    Args:
        img_items: ``(path, identity, camera)`` tuples.
        transform: fastreid's training transform, resizing included; PIL RGB to (3, H, W), 0-255.
        factors: factors to draw from.
        span: if given, the factor is drawn uniformly from this range instead.
        widths: if given, the LR twin's width is drawn from ``low`` to below ``high`` instead.
        kernel: degradation kernel.
        lr_probability: the chance that ``lr_mask`` is set.
        lr_twins: make the LR twins; without, samples have the HR twin alone.
        fixed: each image keeps one factor, and what else its degradation draws, drawn from its
            name and this seed; None draws anew for each sample.
        genuine: cameras whose images are low-resolution as they are; their factor is NaN.
        reduced: cameras whose images are known only reduced by their factor.
        synthetic: factor of a third twin; 0: none.
        masks: folder of foreground masks, ``<stem of the image>.png``; "" for none.
        labelled: the identities whose labels are known; None: all. The others' images have the
            target -1 and are of no class.

    Raises:
        ConfigError: images without a mask; names the first.
    """

    def __init__(
        self,
        img_items: list[Item],
        transform: Transform,
        *,
        factors: Sequence[float] = (2, 3, 4),
        span: tuple[float, float] | None = None,
        widths: tuple[int, int] | None = None,
        kernel: str = "bicubic",
        lr_probability: float = 0.5,
        lr_twins: bool = True,
        fixed: int | None = None,
        genuine: Collection[Any] = (),
        reduced: Collection[Any] = (),
        synthetic: float = 0.0,
        masks: str = "",
        labelled: Collection[Any] | None = None,
    ) -> None:
        super().__init__(img_items, transform, relabel=True)
        if labelled is not None:
            self.pids: list[Any] = sorted({pid for _, pid, _ in img_items if pid in labelled})
            self.pid_dict = {pid: i for i, pid in enumerate(self.pids)}
        self.fixed = fixed
        self.genuine = frozenset(genuine)
        self.reduced = frozenset(reduced)
        self.synthetic = synthetic
        self.masks = masks
        if masks:
            without = [p for p, *_ in img_items if not self._mask_file(p).is_file()]
            if without:
                raise ConfigError(
                    f"INPUT.MASKS: {len(without)} of {len(img_items)} training images have no mask "
                    f"in {masks}; the first is {self._mask_file(without[0]).name}"
                )
        self.factors = tuple(factors)
        self.span = span
        self.widths = widths
        self.kernel = kernel
        self.lr_probability = lr_probability
        self.lr_twins = lr_twins

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample: the keys of :class:`~lrreid_ext.data.samples.Batch` but the first three,
        which :func:`select` adds, and ``index``; tensors without the dimension B."""
        index, seed = key if isinstance(key, tuple) else (key, derive("sample", key))
        path, pid, camid = self.img_items[index]
        image = read_picture(path)
        with seeded(derive("factor", seed)):
            factor = self._drawn_factor(path, image.width)
            mask = random.random() < self.lr_probability
        has_hr = camid not in self.genuine | self.reduced
        small = image
        if camid in self.genuine:
            factor = float("nan")
        elif self.lr_twins or not has_hr:
            small = self._degraded(image, factor, path, seed, "degrade")
        native = image if has_hr else small
        sample = {
            "has_hr": has_hr,
            "lr_mask": mask,
            "targets": self.pid_dict.get(pid, UNLABELLED),
            "camids": self.cam_dict[camid],
            "img_paths": path,
            **self._twin(HR_TWIN, native, 1.0 if has_hr else factor, seed),
        }
        if self.lr_twins:
            sample |= self._twin(LR_TWIN, small, factor, seed)
        if self.synthetic:
            reduced = self._degraded(native, self.synthetic, path, seed, "synthetic")
            sample |= self._twin(SYNTHETIC_TWIN, reduced, self.synthetic, seed)
        if self.masks:
            white = read_picture(self._mask_file(path))
            sample["masks"] = self._transformed(white, seed)[:1] / 255
        return sample

    def _twin(
        self, keys: Iterable[str], image: Image.Image, factor: float, seed: int
    ) -> dict[str, Any]:
        size = torch.tensor(image.size[::-1])
        return dict(zip(keys, (self._transformed(image, seed), size, factor), strict=True))

    def _degraded(
        self, image: Image.Image, factor: float, path: str, seed: int, purpose: str
    ) -> Image.Image:
        if self.fixed is not None:
            draws = Draws.hashed(Path(path).stem, self.fixed)
            return degrade(image, factor, self.kernel, draws=draws)
        with seeded(derive(purpose, seed)):
            return degrade(image, factor, self.kernel, draws=Draws.random())

    @property
    def num_classes(self) -> int:
        """Identities with a label; at least 1, for a classifier has an output."""
        return max(len(self.pids), 1)

    def is_labelled(self, index: int) -> bool:
        """Whether the label of an image is known."""
        return self.img_items[index][1] in self.pid_dict

    def _drawn_factor(self, path: str, width: int) -> float:
        if self.widths:
            wanted = random.randrange(*self.widths)
            if self.fixed is not None:
                wanted = draw_width(Path(path).name, self.fixed, self.widths)
            return max(1.0, width / wanted)
        if self.fixed is not None:
            factors = None if self.span else self.factors
            return draw_factor(Path(path).name, self.fixed, factors, self.span)
        return random.uniform(*self.span) if self.span else float(random.choice(self.factors))

    def _transformed(self, image: Image.Image, seed: int) -> Tensor:
        with seeded(seed):
            return self.transform(image)

    def _mask_file(self, path: str) -> Path:
        return Path(self.masks, f"{Path(path).stem}.png")


def sample_image(sample: Sample) -> Image.Image:
    """A test image as the camera delivered it, RGB: degraded if the sample asks for it."""
    image = read_picture(sample.path)
    if sample.degrade <= 1:
        return image
    draws = Draws.hashed(Path(sample.path).stem, sample.seed)
    return degrade(image, sample.degrade, sample.kernel, draws=draws)


class TestDataset(Dataset):
    """The images of a :class:`TestSet`, degraded on reading where a sample asks for it.

    Args:
        test_set: the images.
        transform: fastreid's test transform, resizing included.
        size_from: what ``native_size`` is: ``file``, the pixels there are, or ``estimated``, how
            many of them are real (:func:`lrreid_ext.data.resolution.native_size`).
    """

    __test__ = False  # pytest must not take this for a test class

    def __init__(self, test_set: TestSet, transform: Transform, size_from: str = "file") -> None:
        check_native_size(size_from)
        self.test_set = test_set
        self.transform = transform
        self.size_from = size_from

    def __len__(self) -> int:
        return len(self.test_set.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``images`` (3, H, W) RGB 0-255 float, ``native_size`` (2,) int64, ``factor`` float,
        ``targets``, ``camids`` and ``index`` int, ``img_paths`` str."""
        sample = self.test_set.samples[index]
        image = sample_image(sample)
        return {
            "images": self.transform(image),
            "native_size": torch.tensor(native_size(image, self.size_from)),
            "factor": float(sample.factor),
            "targets": sample.pid,
            "camids": sample.camid,
            "index": index,
            "img_paths": sample.path,
        }


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Stack tensors and numbers; keep strings as lists."""
    batch: dict[str, Any] = {}
    for key, value in samples[0].items():
        column = [sample[key] for sample in samples]
        if isinstance(value, Tensor):
            batch[key] = torch.stack(column)
        elif isinstance(value, str):
            batch[key] = column
        else:
            batch[key] = torch.tensor(column)
    return cast(Batch, batch)


def select(batch: Batch, train_on: str) -> Batch:
    """Choose the twins that the network trains on.

    Args:
        batch: of :class:`PairedDataset`'s samples, B of them.
        train_on: INPUT.LR.TRAIN_ON: ``hr``, ``lr``, ``mixed`` or ``both``.

    Returns:
        The batch with ``images``, ``native_size`` and ``factor``; with ``both``, of 2B images, HR
        twins first.
    """
    if train_on in ("hr", "lr"):
        return with_twin(batch, HR_TWIN if train_on == "hr" else LR_TWIN)
    hr: dict[str, Any] = dict(with_twin(batch, HR_TWIN))
    lr: dict[str, Any] = dict(with_twin(batch, LR_TWIN))
    if train_on == "both":
        chosen = {key: _joined(hr[key], lr[key]) for key in hr}
    else:
        mask = batch["lr_mask"]
        chosen = {key: _either(mask, lr[key], hr[key]) for key in hr}
    return cast(Batch, chosen)


def _joined(first: Any, second: Any) -> Any:
    return torch.cat([first, second]) if isinstance(first, Tensor) else [*first, *second]


def _either(mask: Tensor, first: Any, second: Any) -> Any:
    """Row by row ``first`` where the mask (B,) is set, else ``second``."""
    if first is second:
        return first
    return torch.where(mask.view(-1, *[1] * (first.ndim - 1)), first, second)
