"""Heads: lengths, naive references, gradients, reloading."""

from __future__ import annotations

import pytest
import torch

from lrreid_ext.config import get_cfg
from lrreid_ext.modeling.backbones import HRNet
from lrreid_ext.modeling.heads import HRNetReIDHead, LinearNeckHead
from lrreid_ext.registry import REID_HEADS_REGISTRY

CHANNELS = (128, 256, 512, 1024)


def maps(n=3, size=(8, 4), seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, c, max(1, size[0] >> i), max(1, size[1] >> i), generator=g)
        for i, c in enumerate(CHANNELS)
    ]


def head_cfg(name, **keys):
    cfg = get_cfg()
    cfg.MODEL.HEADS.NAME = name
    cfg.MODEL.HEADS.NUM_CLASSES = 7
    cfg.MODEL.BACKBONE.FEAT_DIM = 32
    cfg.merge_from_list([x for k, v in keys.items() for x in (f"MODEL.HEADS.{k}", v)])
    return cfg


def inputs(name):
    return maps() if name == "HRNetReIDHead" else torch.randn(3, 32, 4, 2)


@pytest.mark.parametrize("name", ["HRNetReIDHead", "LinearNeckHead"])
def test_contract(name, tmp_path):
    torch.manual_seed(0)
    cfg = head_cfg(name, EMBEDDING_DIM=16)
    head = REID_HEADS_REGISTRY.get(name)(cfg)
    features, targets = inputs(name), torch.tensor([0, 1, 6])
    before = [f.clone() for f in features]
    out = head(features, targets)
    assert out["cls_outputs"].shape == out["pred_class_logits"].shape == (3, 7)
    (out["cls_outputs"].square().sum() + out["features"].sum()).backward()
    missing = [k for k, p in head.named_parameters() if p.grad is None]
    assert not missing
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))

    torch.save(head.state_dict(), tmp_path / "head.pth")
    again = REID_HEADS_REGISTRY.get(name)(cfg)
    again.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    torch.testing.assert_close(again.eval()(features), head.eval()(features))


@pytest.mark.parametrize("head", [HRNetReIDHead, LinearNeckHead])
def test_embedding_dim_0_means_512_and_margins_are_refused(head):
    assert head(head_cfg(head.__name__)).classifier.in_features == 512
    with pytest.raises(ValueError, match="CLS_LAYER"):
        head(head_cfg(head.__name__, CLS_LAYER="ArcSoftmax"))


def test_linear_neck_against_its_formula():
    torch.manual_seed(0)
    head = LinearNeckHead(feat_dim=6, num_classes=3, embedding_dim=4)
    torch.nn.init.normal_(head.fc[0].weight)
    x = torch.randn(5, 6, 4, 2)
    linear = x.mean((2, 3)) @ head.fc[0].weight.T + head.fc[0].bias
    wanted = (linear - linear.mean(0)) / (linear.var(0, unbiased=False) + 1e-5).sqrt()
    wanted = wanted.clamp(min=0)
    out = head(x)
    torch.testing.assert_close(out["features"], wanted)
    torch.testing.assert_close(
        out["cls_outputs"], wanted @ head.classifier.weight.T + head.classifier.bias
    )
    head.eval()
    norm = head.fc[1]
    wanted = (linear - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(head(x), wanted.clamp(min=0))
    frozen = head.represent(x)
    assert set(frozen) == set(out)
    torch.testing.assert_close(frozen["features"], wanted.clamp(min=0))


def test_linear_neck_has_torchreids_names():
    keys = set(LinearNeckHead(feat_dim=6, num_classes=3).state_dict())
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert keys == {"fc.0.weight", "fc.0.bias", "classifier.weight", "classifier.bias"} | {
        f"fc.1.{k}" for k in norm
    }


def test_linear_neck_options():
    assert LinearNeckHead(head_cfg("LinearNeckHead", DROPOUT=0.4)).dropout.p == 0.4
    x = torch.randn(3, 32, 4, 2)
    avg = LinearNeckHead(head_cfg("LinearNeckHead")).eval()
    top = LinearNeckHead(head_cfg("LinearNeckHead", POOL_LAYER="GlobalMaxPool")).eval()
    top.load_state_dict(avg.state_dict())
    torch.testing.assert_close(top(x), avg(x.amax((2, 3), keepdim=True)))
    with pytest.raises(ValueError, match="GlobalAvgPool"):
        LinearNeckHead(head_cfg("LinearNeckHead", POOL_LAYER="GlobalAvgPol"))


def naive_pool(x, size, lam, pooling):
    """Adaptive pooling by its definition: bin i of n covers floor(i*L/n) to ceil((i+1)*L/n)."""
    n, c, h, w = x.shape
    out = torch.zeros(n, c, size, size)
    for i in range(size):
        for j in range(size):
            rows = slice(i * h // size, -(-(i + 1) * h // size))
            cols = slice(j * w // size, -(-(j + 1) * w // size))
            cell = x[:, :, rows, cols].flatten(2)
            avg, top = cell.mean(2), cell.amax(2)
            out[:, :, i, j] = {"avg": avg, "max": top, "both": avg + lam * top}[pooling]
    return out.flatten(1)


@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
def test_hrnet_reid_sequences(pooling):
    head = HRNetReIDHead(head_cfg("HRNetReIDHead", **{"HRNET.POOLING": pooling}))
    features = maps(size=(16, 8))
    sequences = head(features)["sequences"]
    assert [s.shape[1] for s in sequences] == [2048, 1024, 2048, 1024, 6144]
    wanted = [
        naive_pool(f, s, lam, pooling)
        for f, s, lam in zip(features, (4, 2, 2, 1), (0.5, 0.2, 0.2, 0.2), strict=True)
    ]
    for sequence, expected in zip(sequences, [*wanted, torch.cat(wanted, 1)], strict=True):
        torch.testing.assert_close(sequence, expected)


def test_hrnet_reid_outputs():
    torch.manual_seed(0)
    head = HRNetReIDHead(num_classes=7, embedding_dim=16, dropout=0.5)
    features = maps()
    out = head(features, torch.tensor([0, 1, 2]))
    keys = {"cls_outputs", "pred_class_logits", "features", "sequences", "embedding"}
    assert set(out) == keys
    assert out["features"] is out["sequences"][4]
    torch.testing.assert_close(
        out["embedding"], out["features"] @ head.fc.weight.T + head.fc.bias, atol=1e-4, rtol=1e-4
    )
    head.eval()
    frozen = head.represent(features)
    assert set(frozen) == keys
    norm = head.bn
    neck = (frozen["embedding"] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(
        frozen["cls_outputs"], neck @ head.classifier.weight.T + head.classifier.bias
    )
    feature = head(features)
    joined = torch.cat([frozen["sequences"][4], frozen["embedding"]], 1)
    torch.testing.assert_close(feature, joined / joined.norm(dim=1, keepdim=True))


def test_full_size_feature():
    with torch.device("meta"):
        backbone = HRNet().eval()
        head = HRNetReIDHead(num_classes=751).eval()
        features = backbone(torch.zeros(2, 3, 256, 128))
        assert head(features).shape == (2, 6656)
        sequences = head.represent(features)["sequences"]
    assert [s.shape[1] for s in sequences] == [2048, 1024, 2048, 1024, 6144]


def test_hrnet_reid_reads_its_config():
    cfg = head_cfg("HRNetReIDHead", DROPOUT=0.5)
    cfg.MODEL.HEADS.HRNET.SIZES = [2, 1, 1, 1]
    cfg.MODEL.HEADS.HRNET.LAMBDAS = [1.0, 0.0, 0.0, 0.0]
    head = HRNetReIDHead(cfg)
    assert head.dropout.p == 0.5
    assert head.sequence_dims == (512, 256, 512, 1024)
    first = head.eval().represent(maps())["sequences"][0]
    torch.testing.assert_close(first, naive_pool(maps()[0], 2, 1.0, "both"))


def test_hrnet_reid_refuses_what_it_can_not_use():
    with pytest.raises(ValueError, match="POOLING"):
        HRNetReIDHead(num_classes=3, pooling="gem")
    with pytest.raises(ValueError, match="SIZES"):
        HRNetReIDHead(num_classes=3, sizes=(4, 2))
    head = HRNetReIDHead(num_classes=3)
    with pytest.raises(ValueError, match="one tensor"):
        head(torch.zeros(2, 2048, 8, 4))
    with pytest.raises(ValueError, match="build_hrnet_backbone"):
        head(maps()[:3])
