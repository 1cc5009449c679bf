"""Losses against explicit loops, in float32 and float64, and on degenerate batches."""

from __future__ import annotations

import math

import pytest
import torch
from fastreid.modeling.losses import cross_entropy_loss, triplet_loss

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.losses import (
    batch_hard_triplet,
    image_loss,
    l1_image,
    mse_image,
    pseudo_siamese,
    sequence_triplet,
    smooth_cross_entropy,
)
from lrreid_ext.registry import LOSS_REGISTRY

NAMES = [
    "CrossEntropyLoss",
    "TripletLoss",
    "CircleLoss",
    "Cosface",
    "SmoothCrossEntropyLoss",
    "BatchHardTripletLoss",
    "SequenceTripletLoss",
]
SCALE_KEY = dict(zip(NAMES, ["CE", "TRI", "CIRCLE", "COSFACE", "CE", "TRI", "TRI"], strict=True))
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_triplet(features, targets, margin):
    rows, labels = features.double().tolist(), targets.tolist()
    total = 0.0
    for a, (x, label) in enumerate(zip(rows, labels, strict=True)):
        positive, negative = 0.0, None
        for b, (y, other) in enumerate(zip(rows, labels, strict=True)):
            d = math.dist(x, y)
            if other == label and a != b:
                positive = max(positive, d)
            if other != label:
                negative = d if negative is None else min(negative, d)
        if negative is None:
            continue
        gap = positive - negative
        total += math.log1p(math.exp(gap)) if margin == 0 else max(0.0, margin + gap)
    return total / len(rows)


TARGETS = {
    "balanced": [0, 0, 1, 1, 2, 2],
    "single": [0, 0, 1, 2, 2, 2],
    "all single": [5, 4, 3, 2, 1, 0],
    "one identity": [7, 7, 7, 7, 7, 7],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("margin", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("kind", TARGETS)
def test_batch_hard_triplet(kind, margin, dtype):
    targets = torch.tensor(TARGETS[kind])
    features = randn(6, 5, dtype=dtype).requires_grad_()
    loss = batch_hard_triplet(features, targets, margin)
    assert loss.dtype == dtype
    expected = naive_triplet(features.detach(), targets, margin)
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype], abs=1e-12)
    loss.backward()
    assert torch.isfinite(features.grad).all()
    assert kind != "one identity" or loss.item() == 0.0


def test_triplet_gradient():
    features = randn(6, 3, dtype=torch.float64).requires_grad_()
    targets = torch.tensor(TARGETS["balanced"])
    assert torch.autograd.gradcheck(lambda f: batch_hard_triplet(f, targets, 3.0), features)
    assert torch.autograd.gradcheck(lambda f: batch_hard_triplet(f, targets, 0.0), features)


def test_triplet_by_hand():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 7.0]])
    targets = torch.tensor([0, 0, 1, 1])
    # positives 5, 5, 6, 6; negatives 1, sqrt(18), 1, sqrt(18)
    root = math.sqrt(18)
    expected = (4 + (5 - root) + 5 + (6 - root)) / 4 + 0.5
    assert batch_hard_triplet(features, targets, 0.5).item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_equal_features_have_a_finite_gradient(margin):
    features = torch.ones(4, 3, requires_grad=True)
    loss = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), margin)
    assert loss.item() == pytest.approx(margin or math.log(2))
    loss.backward()
    assert torch.isfinite(features.grad).all()


def test_near_features_are_told_apart():
    # |x|^2 + |y|^2 - 2xy in float32 loses these distances altogether.
    features = torch.full((4, 64), 1000.0)
    features += torch.tensor([0.0, 0.5, 1.5, 2.0])[:, None]
    targets = torch.tensor([0, 0, 1, 1])
    expected = naive_triplet(features, targets, 20.0)
    assert batch_hard_triplet(features, targets, 20.0).item() == pytest.approx(expected, rel=1e-4)


def test_half_precision_is_widened():
    features = randn(6, 8).half() * 100
    targets = torch.tensor(TARGETS["balanced"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch_hard_triplet(features, targets, 0.3)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_triplet(features, targets, 0.3), rel=1e-5)


def test_triplet_refuses_bad_input():
    with pytest.raises(ValueError, match="margin"):
        batch_hard_triplet(randn(2, 3), torch.tensor([0, 1]), -0.1)
    with pytest.raises(ValueError, match="features must be"):
        batch_hard_triplet(randn(2, 3, 4), torch.tensor([0, 1]), 0.1)
    with pytest.raises(ValueError, match="features must be"):
        batch_hard_triplet(randn(3, 4), torch.tensor([0, 1]), 0.1)


def test_sequence_triplet_is_the_mean():
    targets = torch.tensor(TARGETS["balanced"])
    sequences = [randn(6, d, seed=d) for d in (2, 3, 7)]
    expected = sum(naive_triplet(s, targets, 0.3) for s in sequences) / 3
    assert sequence_triplet(sequences, targets, 0.3).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="no sequences"):
        sequence_triplet([], targets, 0.3)


def naive_smooth(logits, targets, eps, others):
    total = 0.0
    for row, label in zip(logits.double().tolist(), targets.tolist(), strict=True):
        z = math.log(sum(math.exp(v) for v in row))
        for m, v in enumerate(row):
            weight = others if m != label else 1 - others * (len(row) - 1)
            total += -weight * (v - z)
    return total / len(targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_smooth_cross_entropy(eps, dtype):
    logits, targets = randn(4, 5, dtype=dtype) * 3, torch.tensor([0, 4, 2, 2])
    expected = naive_smooth(logits, targets, eps, eps / 5)
    loss = smooth_cross_entropy(logits, targets, eps)
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    host = cross_entropy_loss(logits, targets, eps)
    assert host.item() == pytest.approx(
        naive_smooth(logits, targets, eps, eps / 4), rel=TOLERANCE[dtype]
    )


def test_smooth_cross_entropy_refuses_a_bad_eps():
    with pytest.raises(ValueError, match="EPSILON"):
        smooth_cross_entropy(randn(2, 3), torch.tensor([0, 1]), -1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_losses(dtype):
    a = (randn(2, 3, 4, 5, dtype=dtype) * 60 + 128).requires_grad_()
    b = randn(2, 3, 4, 5, seed=1, dtype=dtype) * 60 + 128
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    l1 = sum(abs(x - y) for x, y in pairs) / len(pairs) / 255
    mse = sum((x - y) ** 2 for x, y in pairs) / len(pairs) / 255**2
    assert l1_image(a, b).item() == pytest.approx(l1, rel=TOLERANCE[dtype])
    assert mse_image(a, b).item() == pytest.approx(mse, rel=TOLERANCE[dtype])
    assert torch.equal(image_loss(a, b, "l1"), l1_image(a, b))
    assert torch.equal(image_loss(a, b, "mse"), mse_image(a, b))
    mse_image(a, b).backward()
    assert a.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="shape"):
        l1_image(a, b[:1])
    with pytest.raises(ValueError, match=r"MODEL\.SR\.LOSS"):
        image_loss(a, b, "huber")


@pytest.mark.parametrize("dtype", DTYPES)
def test_pseudo_siamese(dtype):
    teacher = [randn(2, d, seed=d, dtype=dtype).requires_grad_() for d in (3, 5)]
    student = [randn(2, d, seed=d + 9, dtype=dtype).requires_grad_() for d in (3, 5)]
    expected = 0.0
    for t, s in zip(teacher, student, strict=True):
        values = list(zip(t.flatten().tolist(), s.flatten().tolist(), strict=True))
        expected += sum(abs(x - y) for x, y in values) / len(values)
    loss = pseudo_siamese(teacher, student)
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype])
    loss.backward()
    assert all(t.grad is None for t in teacher)
    assert all(s.grad.abs().sum() > 0 for s in student)
    for bad in ([], student[:1], student[::-1]):
        with pytest.raises(ValueError, match="pair up"):
            pseudo_siamese(teacher if bad else [], bad)


def outputs(dtype=torch.float32):
    logits = randn(6, 4, dtype=dtype).requires_grad_()
    features = randn(6, 8, seed=1, dtype=dtype).requires_grad_()
    sequences = [features, randn(6, 3, seed=2, dtype=dtype).requires_grad_()]
    return {
        "cls_outputs": logits,
        "pred_class_logits": logits,
        "features": features,
        "sequences": sequences,
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_from_config(name):
    cfg = get_cfg()
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    out = outputs()
    loss = LOSS_REGISTRY.get(name)(cfg)(out, targets)
    assert loss.ndim == 0
    loss.backward()
    used = out["cls_outputs"] if SCALE_KEY[name] == "CE" else out["features"]
    assert used.grad.abs().sum() > 0

    cfg.MODEL.LOSSES[SCALE_KEY[name]].SCALE = 2.5
    scaled = LOSS_REGISTRY.get(name)(cfg)(out, targets)
    assert scaled.item() == pytest.approx(2.5 * loss.item(), rel=1e-6)

    half = outputs(torch.bfloat16)
    assert LOSS_REGISTRY.get(name)(cfg)(half, targets).dtype == torch.float32
    again = LOSS_REGISTRY.get(name)(scale=2.5)
    assert again.scale == 2.5


def test_entries_read_their_options():
    cfg = get_cfg()
    cfg.MODEL.LOSSES.CE.EPSILON = 0.3
    cfg.MODEL.LOSSES.TRI.MARGIN = 0.7
    out, targets = outputs(), torch.tensor([0, 0, 1, 1, 2, 2])

    def value(name):
        return LOSS_REGISTRY.get(name)(cfg)(out, targets).item()

    unit = [s / s.norm(dim=1, keepdim=True) for s in out["sequences"]]
    assert value("SmoothCrossEntropyLoss") == pytest.approx(
        naive_smooth(out["cls_outputs"], targets, 0.3, 0.3 / 4), rel=1e-5
    )
    assert value("CrossEntropyLoss") == pytest.approx(
        naive_smooth(out["cls_outputs"], targets, 0.3, 0.3 / 3), rel=1e-5
    )
    plain = [naive_triplet(s, targets, 0.7) for s in out["sequences"]]
    assert value("BatchHardTripletLoss") == pytest.approx(plain[0], rel=1e-5)
    assert value("SequenceTripletLoss") == pytest.approx(sum(plain) / 2, rel=1e-5)
    cfg.MODEL.LOSSES.TRI.HARD_MINING = True
    assert value("TripletLoss") == pytest.approx(plain[0], rel=1e-4)
    cfg.MODEL.LOSSES.TRI.MARGIN = 0.0
    soft = naive_triplet(out["features"], targets, 0.0)
    assert value("TripletLoss") == pytest.approx(soft, rel=1e-4)
    assert value("BatchHardTripletLoss") == pytest.approx(soft, rel=1e-5)
    cfg.MODEL.LOSSES.TRI.NORM_FEAT = True
    assert value("BatchHardTripletLoss") == pytest.approx(
        naive_triplet(unit[0], targets, 0.0), rel=1e-5
    )


def test_sequence_loss_says_which_head_it_needs():
    out = outputs()
    del out["sequences"]
    with pytest.raises(ConfigError, match="HRNetReIDHead"):
        LOSS_REGISTRY.get("SequenceTripletLoss")(get_cfg())(out, torch.arange(6))


def test_the_host_takes_a_missing_negative_to_be_at_distance_0_when_weighting():
    # Documented in registered.py: the reason why BatchHardTripletLoss exists.
    features, targets = randn(4, 3), torch.zeros(4, dtype=torch.int64)
    assert triplet_loss(features, targets, 0.3, False, False) > 0.3
    assert batch_hard_triplet(features, targets, 0.3) == 0
