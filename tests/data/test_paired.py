"""HR/LR twins: one draw of augmentation for both, a factor per sample, nothing left to chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_OSNET
from PIL import Image

from lrreid_ext.data.loaders import (
    build_test_loader,
    build_test_set,
    build_train_dataset,
    build_train_loader,
)
from lrreid_ext.data.paired import PairedDataset
from lrreid_ext.data.seeding import seeded
from lrreid_ext.errors import ConfigError

YAML = "configs/osnet_copies.yml"


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1).contiguous()


@pytest.fixture
def ramp(tmp_path: Path) -> list[tuple[str, str, str]]:
    """A smooth ramp, which degradation hardly changes, so twins can be compared by position."""
    y, x = np.mgrid[0:64, 0:32]
    image = np.stack([4 * y, 8 * x, 2 * (x + y)], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "ramp.png")
    return [(str(tmp_path / "ramp.png"), "p1", "c1")]


def test_both_twins_get_the_same_flip_shift_and_erased_box(make_cfg, ramp):
    cfg = make_cfg(YAML, TINY_OSNET, "INPUT.REA.ENABLED", "True", "INPUT.PADDING.SIZE", "6")
    from fastreid.data.transforms import build_transforms

    dataset = PairedDataset(ramp, build_transforms(cfg, is_train=True), factors=[2])
    seen = set()
    for seed in range(12):
        sample = dataset[0, seed]
        difference = (sample["images_hr"] - sample["images_lr"]).abs()
        # Another flip or shift would differ by tens of grey levels nearly everywhere.
        assert difference.median() < 2
        seen.add(sample["images_hr"].sum().item())
    assert len(seen) > 6


def test_factor_and_native_size(ramp):
    dataset = PairedDataset(ramp, pixels_resized, factors=[2, 4])
    samples = [dataset[0, seed] for seed in range(40)]
    for sample in samples:
        height, width = sample["native_size_lr"].tolist()
        assert (height, width) == (64 // sample["factor_lr"], 32 // sample["factor_lr"])
        assert sample["native_size_hr"].tolist() == [64, 32]
    factors = [s["factor_lr"] for s in samples]
    assert set(factors) == {2.0, 4.0}
    assert 8 < factors.count(2.0) < 32
    assert 8 < sum(s["lr_mask"] for s in samples) < 32


def pixels_resized(image: Image.Image) -> torch.Tensor:
    return pixels(image.resize((32, 64), Image.Resampling.BICUBIC))


def test_continuous_factors(ramp):
    dataset = PairedDataset(ramp, pixels_resized, span=(1.5, 3.5))
    factors = [dataset[0, seed]["factor_lr"] for seed in range(50)]
    assert min(factors) >= 1.5
    assert max(factors) <= 3.5
    assert len(set(factors)) == 50


def test_a_sample_depends_on_its_seed_alone(make_cfg):
    dataset = build_train_dataset(make_cfg(YAML, TINY_OSNET))
    first = dataset[3, 17]
    with seeded(5):
        torch.rand(3)
        np.random.rand(2)
        again = dataset[3, 17]
    assert torch.equal(first["images_hr"], again["images_hr"])
    assert torch.equal(first["images_lr"], again["images_lr"])
    other = dataset[3, 18]
    assert not torch.equal(first["images_lr"], other["images_lr"])


def test_reading_a_sample_leaves_the_global_generators_alone(make_cfg):
    dataset = build_train_dataset(make_cfg(YAML, TINY_OSNET))
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    dataset[0, 1]
    assert torch.equal(torch.rand(4), expected)


def test_batches_hold_identities_and_change_with_the_epoch(make_cfg):
    loader = build_train_loader(make_cfg(YAML, TINY_OSNET))
    epochs = []
    for epoch in (0, 1, 0):
        loader.batch_sampler.epoch = epoch
        epochs.append([batch["images_hr"].sum().item() for batch in loader])
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) == len(loader) == 4
    for batch in loader:
        _, counts = batch["targets"].unique(return_counts=True)
        assert counts.tolist() == [2, 2, 2, 2]


def test_test_images_keep_their_native_size(make_cfg):
    cfg = make_cfg(YAML, TINY_OSNET, "TEST.FACTORS", "[2, 4]")
    test_set = build_test_set(cfg, "mlr_market1501")
    batches = list(build_test_loader(cfg, test_set))
    index = torch.cat([b["index"] for b in batches])
    assert index.tolist() == list(range(len(test_set.samples)))
    sizes = torch.cat([b["native_size"] for b in batches])
    factors = torch.cat([b["factor"] for b in batches])
    assert set(factors.tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert sizes.tolist() == [[round(64 / f), round(32 / f)] for f in factors.tolist()]
    assert all(b["images"].shape[1:] == (3, 64, 32) for b in batches)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATALOADER.NUM_INSTANCE", "3"], "multiple of 3"),
        (["SOLVER.IMS_PER_BATCH", "16"], "needs 8 identities, the training set has 6"),
        (["DATALOADER.SAMPLER_TRAIN", "Nope"], "none of TrainingSampler"),
        (["INPUT.LR.TRAIN_ON", "low"], "none of hr, lr, mixed, both"),
        (["INPUT.AFFINE.ENABLED", "True"], "INPUT.AFFINE"),
    ],
)
def test_impossible_loaders_say_which_key(make_cfg, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_train_loader(make_cfg(YAML, TINY, *overrides))
