"""Training on a part of the labels: who keeps them, and what batches are made of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import TINY

from lrreid_ext.config import CfgNode
from lrreid_ext.data.folds import labelled_identities
from lrreid_ext.data.loaders import build_train_loader
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.meta_arch import Pipeline, take

YAML = "projects/RAIN/synth.yml"
Make = Callable[..., CfgNode]
ITEMS = [(f"{pid}_{shot}", f"p{pid}", 1) for pid in range(20) for shot in range(3)]


def test_a_larger_share_holds_every_smaller_one() -> None:
    shares = [labelled_identities(ITEMS, share, 3) for share in (0, 0.1, 0.25, 0.5, 1)]
    assert [len(s) for s in shares] == [0, 2, 5, 10, 20]
    assert all(a < b for a, b in pairwise(shares))
    assert labelled_identities(ITEMS[::-1], 0.5, 3) == shares[3]
    assert labelled_identities(ITEMS, 0.5, 4) != shares[3]


@pytest.mark.parametrize("share", [-0.1, 1.1, 0.04])
def test_shares_that_make_no_sense_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.LABELLED"):
        labelled_identities(ITEMS, share, 0)


def batches(cfg: CfgNode) -> list[dict[str, Any]]:
    return list(build_train_loader(cfg))


@pytest.mark.parametrize(("share", "counts"), [("0", 0), ("0.34", 4), ("0.67", 6), ("1", 8)])
def test_batches_hold_both_kinds_in_proportion(make_cfg: Make, share: str, counts: int) -> None:
    cfg = make_cfg(YAML, TINY, "DATASETS.LABELLED", share)
    found = batches(cfg)
    assert len(found) == 36 // 8
    for batch in found:
        targets = batch["targets"]
        known = targets[targets >= 0]
        assert len(known) == counts and (targets[: len(known)] >= 0).all()
        # NUM_INSTANCE images of each labelled person.
        assert all(n == 2 for n in torch.bincount(known)[known])
    classes = torch.cat([b["targets"] for b in found])
    assert classes.max() == build_train_loader(cfg).dataset.num_classes - 1 or share == "0"
    again = batches(cfg)
    assert [b["img_paths"] for b in again] == [b["img_paths"] for b in found]


def test_unlabelled_images_are_drawn_without_regard_to_identity(make_cfg: Make) -> None:
    cfg = make_cfg(YAML, TINY, "DATASETS.LABELLED", "0", "SOLVER.IMS_PER_BATCH", "12")
    paths = [path for batch in batches(cfg) for path in batch["img_paths"]]
    assert len(set(paths)) == 36  # each once in an epoch, in whatever order


def test_dropped_images_are_not_read(make_cfg: Make) -> None:
    cfg = make_cfg(YAML, TINY, "DATASETS.LABELLED", "0.5", "DATASETS.UNLABELLED", "drop",
                   "SOLVER.IMS_PER_BATCH", "6")  # fmt: skip
    found = batches(cfg)
    assert len(found) == 18 // 6 and all((b["targets"] >= 0).all() for b in found)
    with pytest.raises(ConfigError, match=r"DATASETS\.LABELLED.*no training image is left"):
        build_train_loader(make_cfg(YAML, TINY, "DATASETS.LABELLED", "0",
                                    "DATASETS.UNLABELLED", "drop"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELLED: 'lose'"):
        build_train_loader(make_cfg(YAML, TINY, "DATASETS.UNLABELLED", "lose"))
    with pytest.raises(ConfigError, match="don't hold both"):
        build_train_loader(make_cfg(YAML, TINY, "DATASETS.LABELLED", "0.5",
                                    "SOLVER.IMS_PER_BATCH", "4"))  # fmt: skip


def test_identity_losses_see_labelled_rows_alone() -> None:
    def squared(outputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        return (outputs["cls_outputs"].sum(1) - targets).square().mean()

    model = Pipeline.__new__(Pipeline)
    torch.nn.Module.__init__(model)
    model.losses = {"loss_squared": squared}
    logits = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 3.0]], requires_grad=True)
    outputs = {"cls_outputs": logits, "pred_class_logits": logits}
    losses, figures = model.identity_losses(outputs, torch.tensor([0, -1, 1]))
    assert losses["loss_squared"] == ((1 - 0) ** 2 + (3 - 1) ** 2) / 2
    assert figures["cls_accuracy"] == 1
    losses["loss_squared"].backward()
    assert logits.grad is not None and (logits.grad[1] == 0).all() and (logits.grad[0] != 0).all()
    logits.grad = None
    # None labelled: the same losses, 0, with a gradient of 0.
    none, _ = model.identity_losses(outputs, torch.tensor([-1, -1, -1]))
    assert none.keys() == losses.keys() and none["loss_squared"] == 0
    none["loss_squared"].backward()
    assert (logits.grad == 0).all()
    chosen = torch.tensor([True, True, False])
    losses, _ = model.identity_losses(outputs, torch.tensor([0, -1, 1]), chosen)
    assert losses["loss_squared"] == 1
    assert take({"a": logits}, chosen, 3)["a"].shape == (2, 2)
