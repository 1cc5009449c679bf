"""Loaders for training and testing.

fastreid's own loader needs a CUDA stream and hangs for ever when a worker dies; these are plain
``DataLoader``s. Batches stay on the CPU, and :func:`to_device` moves them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any, cast

import torch
from fastreid.data import samplers
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader

from lrreid_ext.config import CfgNode
from lrreid_ext.data.folds import Item, fold_of, labelled_identities
from lrreid_ext.data.mixed_gallery import mixed_gallery
from lrreid_ext.data.paired import PairedDataset, TestDataset, collate
from lrreid_ext.data.recipes import test_set_of
from lrreid_ext.data.samples import GALLERY, QUERY, QUERY_HR, Batch, TestSet
from lrreid_ext.data.seeding import derive, seeded
from lrreid_ext.data.validation import validation_set
from lrreid_ext.errors import ConfigError
from lrreid_ext.registry import DATASET_REGISTRY, KERNEL_REGISTRY, lookup

logger = logging.getLogger(__name__)

TRAIN_ON = ("hr", "lr", "mixed", "both")


def build_dataset_of(cfg: CfgNode, name: str, key: str) -> Any:
    """The data set called ``name``, built first if it is a recipe that isn't built yet."""
    entry = lookup(DATASET_REGISTRY, name, key)
    options = cfg.DATASETS.OPTIONS.get(name)
    kwargs = {"options": dict(options)} if options else {}
    return entry(root=cfg.DATASETS.ROOT, source=cfg.DATASETS.SOURCE, **kwargs)


def training_items(cfg: CfgNode, data: Any) -> list[Item]:
    """What a data set gives to learn from: its training images, but for those of DATASETS.FOLD.

    Raises:
        ConfigError: it has none.
    """
    items = sorted(data.train)  # folders list their files in any order
    if not items and not cfg.DATASETS.COMBINEALL:
        raise ConfigError(
            f"DATASETS.NAMES: {getattr(data, 'dataset_name', '') or type(data).__name__} has no "
            "training images, it is for testing alone; name it in DATASETS.TESTS"
        )
    if cfg.DATASETS.FOLD:
        items = fold_of(items, cfg.DATASETS.FOLD, cfg.SEED, left_out=False)
    return items


def check_input(cfg: CfgNode) -> None:
    """Refuse INPUT keys that can't be followed.

    Raises:
        ConfigError: names the key.
    """
    lr = cfg.INPUT.LR
    for branch in ("DATALOADER", "TEST"):
        if cfg[branch].NUM_WORKERS < 0:
            raise ConfigError(
                f"{branch}.NUM_WORKERS: {cfg[branch].NUM_WORKERS} must be at least 0: none but the "
                "process itself"
            )
    if lr.TRAIN_ON not in TRAIN_ON:
        raise ConfigError(f"INPUT.LR.TRAIN_ON: {lr.TRAIN_ON!r} is none of {', '.join(TRAIN_ON)}")
    if lr.RANGE and len(lr.RANGE) != 2:
        raise ConfigError(f"INPUT.LR.RANGE: two numbers or none, not {list(lr.RANGE)}")
    lookup(KERNEL_REGISTRY, lr.KERNEL, "INPUT.LR.KERNEL")
    if min([*lr.FACTORS, *lr.RANGE], default=1) < 1 or not (lr.FACTORS or lr.RANGE):
        raise ConfigError("INPUT.LR.FACTORS and RANGE: factors are numbers >= 1, at least one")
    if cfg.INPUT.AFFINE.ENABLED:
        raise ConfigError(
            "INPUT.AFFINE.ENABLED: fastreid's affine augmentation doesn't run on today's "
            "torchvision; use INPUT.PADDING and INPUT.CROP"
        )
    if cfg.INPUT.RPT.ENABLED:
        raise ConfigError(
            "INPUT.RPT.ENABLED: random patches come from images read before, so that a run could "
            "not be repeated or resumed; use INPUT.REA"
        )
    if lr.WIDTHS and not (len(lr.WIDTHS) == 2 and 1 <= lr.WIDTHS[0] < lr.WIDTHS[1]):
        raise ConfigError(
            f"INPUT.LR.WIDTHS: two whole numbers 1 <= low < high or none, not {list(lr.WIDTHS)}"
        )
    colours = [k for k in ("CJ", "REA", "AUTOAUG", "AUGMIX") if cfg.INPUT[k].ENABLED]
    if cfg.INPUT.MASKS and colours:
        raise ConfigError(
            f"INPUT.MASKS: masks can't go through INPUT.{colours[0]}, which changes what it sees; "
            "flips, padding and crops can"
        )
    if cfg.DATASETS.UNLABELLED not in ("drop", "keep"):
        raise ConfigError(
            f"DATASETS.UNLABELLED: {cfg.DATASETS.UNLABELLED!r} is neither 'drop' nor 'keep'"
        )
    if lr.SYNTHETIC and lr.SYNTHETIC < 1:
        raise ConfigError(f"INPUT.LR.SYNTHETIC: {lr.SYNTHETIC} must be a factor >= 1, or 0")


def build_train_dataset(cfg: CfgNode) -> PairedDataset:
    """All training images of ``DATASETS.NAMES`` with their LR twins."""
    check_input(cfg)
    lr = cfg.INPUT.LR
    items: list[tuple[str, Any, Any]] = []
    genuine: set[Any] = set()
    reduced: set[Any] = set()
    for name in cfg.DATASETS.NAMES:
        data = build_dataset_of(cfg, name, "DATASETS.NAMES")
        if comm.is_main_process():
            data.show_train()
        items += training_items(cfg, data)
        genuine |= cameras_called(data, name, getattr(data, "genuine_lr", ()))
        reduced |= cameras_called(data, name, lr.CAMERAS)
        if cfg.DATASETS.COMBINEALL:
            # Undegraded images alone: the twins of a recipe's queries, where there are such.
            test_set = test_set_of(data, name, hr=True)
            twins = any(s.group == QUERY_HR for s in test_set.samples)
            small = frozenset(getattr(data, "genuine_lr", ()))
            items += sorted(
                (s.path, f"{name}_test_{s.pid}", f"{name}_test_{s.camid}")
                for s in test_set.samples
                if s.group in (QUERY_HR if twins else QUERY, GALLERY)
                if s.pid > 0 and (s.factor == 1 or s.camid in small)
            )
            genuine |= {f"{name}_test_{n}" for n in small}
            reduced |= {f"{name}_test_{n}" for n in lr.CAMERAS}
    labelled = labelled_identities(items, cfg.DATASETS.LABELLED, cfg.SEED)
    if cfg.DATASETS.UNLABELLED == "drop":
        items = [item for item in items if item[1] in labelled]
        if not items:
            raise ConfigError(
                "DATASETS.LABELLED: with 0 and DATASETS.UNLABELLED drop no training image is left"
            )
    return PairedDataset(
        items,
        build_transforms(cfg, is_train=True),
        factors=lr.FACTORS,
        span=tuple(lr.RANGE) if lr.RANGE else None,
        widths=tuple(lr.WIDTHS) if lr.WIDTHS else None,
        kernel=lr.KERNEL,
        lr_probability=lr.PROB,
        lr_twins=lr.TRAIN_ON != "hr",
        fixed=cfg.SEED if lr.FIXED else None,
        genuine=genuine,
        reduced=reduced,
        synthetic=lr.SYNTHETIC,
        masks=cfg.INPUT.MASKS,
        labelled=labelled,
    )


def cameras_called(data: Any, name: str, numbers: Iterable[int]) -> set[Any]:
    """Cameras, by number, as a data set's training images name them.

    Raises:
        ConfigError: no training image is of such a camera.
    """
    known = {camera for _, _, camera in data.train}
    called = {n if n in known else f"{name}_{n}" for n in numbers}
    if not called <= known:
        raise ConfigError(
            f"INPUT.LR.CAMERAS: {name} has no camera {sorted(called - known, key=str)[0]}; "
            f"there are {', '.join(sorted(map(str, known)))}"
        )
    return called


class EpochBatches:
    """A batch sampler: which samples make each batch of an epoch, and each sample's seed.

    An epoch's batches depend on the seed and the epoch's number alone. They are the host sampler's:
    its infinite stream, begun anew each epoch.

    Where some images have no label, each batch holds both kinds in the data set's proportion, in
    whole groups of NUM_INSTANCE: labelled ones as the sampler gives them, then others in an order
    drawn without regard to who is on them.

    Args:
        cfg: DATALOADER.SAMPLER_TRAIN, NUM_INSTANCE and SOLVER.IMS_PER_BATCH.
        dataset: what is sampled from.
    """

    def __init__(self, cfg: CfgNode, dataset: PairedDataset) -> None:
        self.name = cfg.DATALOADER.SAMPLER_TRAIN
        self.instances = cfg.DATALOADER.NUM_INSTANCE
        self.batch_size, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        if rest or not self.batch_size:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} images can't be shared out "
                f"evenly among {comm.get_world_size()} processes"
            )
        self.dataset = dataset
        self.seed = cfg.SEED
        self.epoch = 0
        self.length = len(dataset) // cfg.SOLVER.IMS_PER_BATCH
        if self.length == 0:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: {cfg.SOLVER.IMS_PER_BATCH} is more than the "
                f"{len(dataset)} training images"
            )
        self.by_identity = self.name in ("NaiveIdentitySampler", "BalancedIdentitySampler")
        known = [dataset.is_labelled(i) for i in range(len(dataset))]
        self.labelled = [i for i, is_known in enumerate(known) if is_known]
        self.others = [i for i, is_known in enumerate(known) if not is_known]
        self._check()
        self.count = self._labelled_per_batch()
        self._check_identities()

    def _check(self) -> None:
        if self.by_identity:
            if self.instances < 1:
                raise ConfigError(f"DATALOADER.NUM_INSTANCE: {self.instances} must be at least 1")
            if self.batch_size % self.instances:
                raise ConfigError(
                    f"DATALOADER.NUM_INSTANCE: {self.batch_size} images per process are not a "
                    f"multiple of {self.instances}"
                )
        elif self.name not in ("TrainingSampler", "ImbalancedDatasetSampler"):
            raise ConfigError(
                f"DATALOADER.SAMPLER_TRAIN: {self.name!r} is none of TrainingSampler, "
                "NaiveIdentitySampler, BalancedIdentitySampler, ImbalancedDatasetSampler"
            )

    def _labelled_per_batch(self) -> int:
        if not self.labelled or not self.others:
            return self.batch_size if self.labelled else 0
        # Two groups of labelled images at least, for a triplet wants two identities.
        group = self.instances if self.by_identity else 1
        groups = self.batch_size // group
        share = round(groups * len(self.labelled) / len(self.dataset))
        count = min(max(share, 2), groups - 1) * group
        if count < 2 * group:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: {self.batch_size} images per process don't hold both "
                f"labelled images ({2 * group}) and others ({group})"
            )
        return count

    def _check_identities(self) -> None:
        wanted = self.count // self.instances * comm.get_world_size()
        if self.by_identity and self.count and self.dataset.num_classes < wanted:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: a batch needs {wanted} identities, the training set "
                f"has {self.dataset.num_classes}"
            )

    def _sampler(self, seed: int) -> Any:
        items = [self.dataset.img_items[i] for i in self.labelled]
        if self.name == "TrainingSampler":
            return samplers.TrainingSampler(len(items), seed=seed)
        if self.name == "ImbalancedDatasetSampler":
            return samplers.ImbalancedDatasetSampler(items, seed=seed)
        return getattr(samplers, self.name)(items, self.count, self.instances, seed=seed)

    def _indices(self, draw: int) -> Iterator[list[int]]:
        """The images of each batch of an epoch."""
        streams = []
        if self.count:
            streams.append((self.labelled, iter(self._sampler(draw % 2**32)), self.count))
        if self.count < self.batch_size:
            seed = derive(draw, "unlabelled") % 2**32
            stream = iter(samplers.TrainingSampler(len(self.others), seed=seed))
            streams.append((self.others, stream, self.batch_size - self.count))
        for _ in range(self.length):
            yield [indices[int(k)] for indices, stream, n in streams for k in islice(stream, n)]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draw = derive("epoch", self.seed, self.epoch)
        with seeded(draw):
            batches = list(self._indices(draw))
        rank = comm.get_rank()
        for start, batch in zip(count(0, self.batch_size), batches, strict=False):
            yield [(index, derive(draw, rank, start + k)) for k, index in enumerate(batch)]


def build_train_loader(cfg: CfgNode) -> DataLoader:
    """Batches as :class:`PairedDataset` describes; ``loader.batch_sampler.epoch`` picks the epoch.

    One pass is one epoch: ``len(dataset) // IMS_PER_BATCH`` batches.
    """
    dataset = build_train_dataset(cfg)
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(cfg, dataset),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def build_test_set(cfg: CfgNode, name: str) -> TestSet:
    """Every image that an evaluation of ``name`` looks at."""
    return test_set_in(cfg, build_dataset_of(cfg, name, "DATASETS.TESTS"), name)


def test_set_in(cfg: CfgNode, dataset: Any, name: str) -> TestSet:
    """Every image that an evaluation of ``dataset``, called ``name``, looks at, part of the gallery
    reduced if TEST.GALLERY asks for it."""
    if cfg.TEST.ON_FOLD:
        test_set, kernel = validation_set(cfg, dataset, name), cfg.INPUT.LR.KERNEL
    else:
        test_set = test_set_of(dataset, name, cfg.TEST.FACTORS, cfg.TEST.HR)
        kernel = getattr(getattr(dataset, "recipe", None), "kernel", "bicubic")
    mixed = cfg.TEST.GALLERY
    return mixed_gallery(test_set, mixed.LR_SHARE, mixed.LR_FACTORS, cfg.TEST.SEED, kernel)


test_set_in.__test__ = False  # type: ignore[attr-defined]  # pytest must not take this for a test


def build_test_loader(cfg: CfgNode, test_set: TestSet) -> DataLoader:
    """All of the test set; several processes share it out."""
    size = max(cfg.TEST.IMS_PER_BATCH // comm.get_world_size(), 1)
    return DataLoader(
        TestDataset(test_set, build_transforms(cfg, is_train=False), cfg.INPUT.NATIVE_SIZE),
        sampler=samplers.InferenceSampler(len(test_set.samples)),
        batch_size=size,
        num_workers=cfg.TEST.NUM_WORKERS,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on ``device``."""
    values = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    return cast(Batch, values)
