"""Gates against resolution: figures by hand, and the tool on a model small enough for a test."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_OSNET
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from PIL import Image

from lrreid_ext.cli import main
from lrreid_ext.data.degrade import degrade
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.build import build_model
from lrreid_ext.trained import load_trained
from projects.FFSR_RIFE.gates import (
    GateRecords,
    Trend,
    degraded_twins,
    draw,
    dual_stream_of,
    read_gates,
    rows,
    table,
    trends,
    verdict,
)

OSNET = "configs/osnet_copies.yml"
DUAL = [
    *TINY_OSNET,
    "MODEL.BACKBONE.NAME", "build_dual_stream_backbone",
    "MODEL.BACKBONE.DUAL.BASE", "build_osnet_backbone",
    "MODEL.BACKBONE.DUAL.GATE_DIM", "8",
    "MODEL.BACKBONE.DUAL.WIDEST", "40",
    "INPUT.SIZE_TRAIN", "[48, 24]",
    "INPUT.SIZE_TEST", "[48, 24]",
]  # fmt: skip

RECORDS = GateRecords(
    gates=np.array(
        [
            [[0.9, 0.1], [0.5, 0.5]],
            [[0.7, 0.3], [0.5, 0.1]],
            [[0.3, 0.6], [0.5, 0.3]],
            [[0.1, 0.8], [0.5, 0.2]],
        ],
        dtype=np.float32,
    ),
    r=np.array([0.25, 0.25, 0.5, 1.0], dtype=np.float32),
    factor=np.array([4.0, 4.0, 2.0, 1.0]),
)


def naive_spearman(x, y):
    """The correlation of ranks, equal values sharing the mean of theirs."""

    def ranks(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    a, b = ranks(x), ranks(y)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    above = sum((i - ma) * (j - mb) for i, j in zip(a, b, strict=True))
    below = sum((i - ma) ** 2 for i in a) * sum((j - mb) ** 2 for j in b)
    return above / below**0.5


def test_rows_are_means_and_deviations_over_images():
    found = rows(RECORDS)
    assert [(row.block, row.factor, row.images) for row in found] == [
        (b, f, n) for b in (1, 2) for f, n in ((1.0, 1), (2.0, 1), (4.0, 2))
    ]
    fourth = found[2]
    assert (fourth.r, fourth.r_std) == (0.25, 0.0)
    assert fourth.wL == pytest.approx(0.8)
    assert fourth.wL_std == pytest.approx(0.1)
    assert fourth.wH == pytest.approx(0.2)
    assert found[5].wH == pytest.approx(0.3)
    assert found[5].wH_std == pytest.approx(0.2)


def test_trends_are_rank_correlations():
    one, two = trends(RECORDS)
    assert one.low == pytest.approx(naive_spearman(RECORDS.r, RECORDS.gates[:, 0, 0]))
    assert one.high == pytest.approx(naive_spearman(RECORDS.r, RECORDS.gates[:, 0, 1]))
    assert two.high == pytest.approx(naive_spearman(RECORDS.r, RECORDS.gates[:, 1, 1]))
    assert two.low is None  # the same for every image
    assert one.learned
    assert not two.learned
    text = verdict([one, two])
    assert "\n" not in text
    assert "in 1 of 2 blocks" in text
    assert "block 1 yes (wL -0.95, wH +0.95)" in text
    assert "block 2 NO (wL none, wH -0.11)" in text


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.9), (-0.9, -0.9), (-0.2, 0.9), (-0.9, 0.2)])
def test_both_weights_must_go_the_right_way(low, high):
    assert not Trend(1, low, high).learned
    assert Trend(1, -0.9, 0.9).learned


def test_one_resolution_shows_no_trend():
    same = GateRecords(RECORDS.gates[:2], RECORDS.r[:2], RECORDS.factor[:2])
    with pytest.raises(ConfigError, match="two different resolutions"):
        trends(same)


def test_the_table_is_csv():
    back = list(csv.DictReader(io.StringIO(table(rows(RECORDS)))))
    assert len(back) == 6
    assert back[2]["factor"] == "4"
    assert float(back[2]["wL"]) == pytest.approx(0.8)
    assert list(back[0]) == ["block", "factor", "images", "r", "r_std",
                             "wL", "wL_std", "wH", "wH_std"]  # fmt: skip


def test_the_figure_shows_each_block_and_the_target():
    low, high = draw(rows(RECORDS)).axes
    names = [line.get_label() for line in low.get_lines()]
    assert names == ["1 - r", "block 1", "block 2"]
    target, first, _ = high.get_lines()
    assert list(target.get_xdata()) == list(target.get_ydata()) == [0.25, 1.0]
    np.testing.assert_allclose(first.get_xdata(), [0.25, 0.5, 1.0])
    np.testing.assert_allclose(first.get_ydata(), [0.2, 0.6, 0.8], rtol=1e-6)


# ---------------------------------------------------------------- the images
def sample(name, group, factor=1.0, degraded=1.0):
    return Sample(name, 1, 1, group, factor=factor, degrade=degraded)


def test_twins_and_nothing_else():
    names = [f"{i}.png" for i in range(5)]
    samples = [sample(n, "query", 2.0) for n in names] + [sample("g.png", "gallery")]
    samples += [sample(n, "query_hr") for n in names]
    samples += [sample(n, "x3", 3.0, 3.0) for n in names]
    found = degraded_twins(TestSet("s", samples, "hash"), [1, 3, 3.0], limit=3)
    assert [(s.path, s.degrade) for s in found.samples] == [
        (f"{i}.png", f) for f in (1.0, 3.0) for i in (0, 2, 4)
    ]
    assert found.manifest_hash == "hash"
    assert len(degraded_twins(TestSet("s", samples), [3], limit=9).samples) == 5
    with pytest.raises(ConfigError, match=r"at least 1, not 0\.5"):
        degraded_twins(TestSet("s", samples), [0.5])
    with pytest.raises(ConfigError, match="no high-resolution twins"):
        degraded_twins(TestSet("s", samples[:6]), [1])


# ---------------------------------------------------------------- the model
def test_gates_are_read_image_by_image(make_cfg):
    cfg = make_cfg(OSNET, DUAL, "MODEL.HEADS.NUM_CLASSES", "6", "TEST.FACTORS", "[2, 4]",
                   "TEST.IMS_PER_BATCH", "5")  # fmt: skip
    model = build_model(cfg).eval()
    test_set = degraded_twins(build_test_set(cfg, "mlr_market1501"), [1, 2, 4], limit=4)
    records = read_gates(cfg, model, test_set)
    assert records.gates.shape == (12, 4, 2)
    assert records.factor.tolist() == [1.0] * 4 + [2.0] * 4 + [4.0] * 4
    np.testing.assert_allclose(records.r, [32 / 40] * 4 + [16 / 40] * 4 + [8 / 40] * 4)
    transform = build_transforms(cfg, is_train=False)
    for i in (0, 5, 11):
        one = test_set.samples[i]
        image = read_image(one.path, "RGB")
        if one.degrade > 1:
            image = degrade(image, one.degrade, one.kernel)
        with torch.no_grad():
            shown = model.normalise(transform(image)[None])
            wanted = model.backbone.forward_with_extras(shown)[1]["gates"][0]
        np.testing.assert_allclose(records.gates[i], wanted, rtol=1e-4, atol=1e-5)
    assert not [g for g in model.backbone.gates.modules() if g._forward_hooks]


def test_only_learned_gates_can_be_read(make_cfg):
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.NAME.*not with 0"):
        dual_stream_of(torch.nn.Linear(1, 1))
    cfg = make_cfg(
        OSNET, DUAL, "MODEL.HEADS.NUM_CLASSES", "6", "MODEL.BACKBONE.DUAL.GATES", "equal"
    )
    with pytest.raises(ConfigError, match=r"DUAL\.GATES: .* equal weights"):
        dual_stream_of(build_model(cfg))


def test_gates_learn_resolution_from_their_loss(make_cfg):
    """Noise at three resolutions: a few dozen steps are enough to tell them apart, also unseen."""
    cfg = make_cfg(OSNET, DUAL, "MODEL.HEADS.NUM_CLASSES", "6")
    backbone = build_model(cfg).backbone
    factors = torch.tensor([1, 2, 4]).repeat(4)

    def batch(seed):
        random = np.random.default_rng(seed)
        images = []
        for factor in factors.tolist():
            pixels = random.integers(0, 255, (48, 24, 3)).astype(np.uint8)
            small = degrade(Image.fromarray(pixels), float(factor)).resize((24, 48))
            images.append(torch.from_numpy(np.asarray(small) / 64 - 2).permute(2, 0, 1).float())
        native = torch.stack([48 // factors, 40 // factors], 1)
        return torch.stack(images), {"native_size": native}

    def heldout():
        with torch.no_grad():
            gates = backbone.eval().forward_with_extras(batch(999)[0])[1]["gates"]
        r = (40 // factors / 40).numpy().astype(np.float32)
        return trends(GateRecords(gates.numpy(), r, factors.numpy().astype(float)))

    optimiser = torch.optim.Adam(backbone.parameters(), 3e-3)
    losses = []
    for step in range(25):
        images, shown = batch(step)
        backbone.train()
        extras = backbone.forward_with_extras(images)[1]
        loss = backbone.losses(extras, shown)["loss_gates"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3
    assert all(trend.learned for trend in heldout())


# ---------------------------------------------------------------- the tool
@pytest.fixture
def trained(make_cfg):
    """A checkpoint as training leaves it, but for the training."""
    cfg = make_cfg(OSNET, DUAL, "MODEL.HEADS.NUM_CLASSES", "6")
    model = build_model(cfg)
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    torch.save({"model": model.state_dict()}, path)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder, model.state_dict()


def test_load_trained_fills_in_what_the_checkpoint_knows(make_cfg, trained):
    folder, state = trained
    model = load_trained(make_cfg(OSNET, DUAL))
    cfg = model.cfg
    assert Path(cfg.MODEL.WEIGHTS) == folder / "model_final.pth"
    assert cfg.MODEL.HEADS.NUM_CLASSES == 6
    assert not model.module.training
    assert model.training == {}
    assert all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS, or the OUTPUT_DIR of a run"):
        load_trained(make_cfg(OSNET, DUAL, out="elsewhere"))


def test_the_tool_writes_figures_and_a_verdict(trained, tmp_path, capsys):
    folder, _ = trained
    out = tmp_path / "gates"
    options = ["--out", str(out), "--limit", "6", "--factors", "1", "1.5", "4"]
    assert main(["gates", str(folder), *options]) == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if line.startswith("Gates learned")]) == 1
    base = out / "gates_mlr_market1501.csv"
    found = list(csv.DictReader(base.read_text().splitlines()))
    assert [(r["block"], r["factor"], r["images"]) for r in found] == [
        (str(b), f, "6") for b in (1, 2, 3, 4) for f in ("1", "1.5", "4")
    ]
    beside = json.loads(base.with_suffix(".json").read_text())
    assert beside["widest"] == 40
    assert beside["images"] == 18
    assert [entry["block"] for entry in beside["spearman"]] == [1, 2, 3, 4]
    assert beside["checkpoint"].endswith("model_final.pth")
    assert base.with_suffix(".svg").read_text().count("block 4") >= 2
    assert Image.open(base.with_suffix(".png")).width > 500


def test_the_tool_says_what_is_wrong(trained, capsys):
    folder, _ = trained
    for options, wanted in (
        (["--factors", "2"], "two different resolutions"),
        (["--factors", "0.5", "2"], "at least 1"),
        (["--opts", "MODEL.BACKBONE.DUAL.GATE_DIM", "9"], "gates.low.0.fc1.weight"),
        (["--opts", "DATASETS.TESTS", "[]"], "DATASETS.TESTS"),
        (["--data-set", "mlr_markt"], "mlr_market1501"),
    ):
        assert main(["gates", str(folder), *options]) == 2
        assert wanted in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gates", str(folder), "--limit", "-1"])
    assert main(["gates", str(folder / "absent.pth")]) == 2
    assert "absent.pth" in capsys.readouterr().err
