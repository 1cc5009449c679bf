"""lrreid classical on a miniature data set: what is trained on, what is written, what fails."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, load_script
from PIL import Image

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.data.samples import TestSet
from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.frontends import SRCNN
from projects.SING.classical import lomo

classical = import_module("projects.SING.commands.classical")
update_tables = load_script("tools/update_tables.py")

CONFIG = str(ROOT / "configs" / "osnet_hr.yml")


@pytest.fixture
def words(market_root: Path, tmp_path: Path):
    """The command line: ``words("xqda", "Bicubic", "--limit", "4", "SEED", "1")``."""
    torch.set_num_threads(1)
    # The input's size is not the config's to choose here.
    tiny = [w for k in range(0, len(TINY), 2) if "SIZE_T" not in TINY[k] for w in TINY[k : k + 2]]
    base = [*tiny, "DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(tmp_path)]

    def make(metric: str, sr: str, *more: str) -> list[str]:
        flags = [w for k, w in enumerate(more) if w.startswith("--") or more[k - 1] == "--limit"]
        opts = [w for w in more if w not in flags]
        given = ["--config-file", CONFIG, "--metric", metric, "--sr", sr, "--workers", "1"]
        return [*given, *flags, *base, *opts]

    return make


@pytest.fixture
def settings(words):
    def make(*args: str) -> CfgNode:
        parser = ArgumentParser()
        classical.add_arguments(parser)
        return classical.settings(parser.parse_intermixed_args(words(*args)))

    return make


def results(folder: Path) -> dict:
    return json.loads((folder / "results_mlr_market1501.json").read_text())


@pytest.mark.parametrize(("metric", "sr"), [("xqda", "Bicubic"), ("nfst", "Bilinear")])
def test_end_to_end(words, tmp_path: Path, metric: str, sr: str):
    assert main(["classical", *words(metric, sr)]) == 0
    folder = tmp_path / f"{metric}_{sr.lower()}"
    found = results(folder)
    assert list(found["groups"]) == ["query", "query@2", "query@3", "query@4", "query_hr", "x2"]
    assert found["metric"] == "euclidean"
    assert found["manifest_hash"]
    assert found["checkpoint"] == ""
    assert found["machine"]["processors"]
    # Six people, three cameras, two images each.
    facts = found["info"]["classical"]
    assert facts["metric"] == metric
    assert facts["sr"] == sr
    assert (facts["train_images"], facts["train_images_lr"]) == (36, 12)
    assert facts["dimensions"] <= 5 or metric == "xqda"
    # Clothes of random colours: anything that works finds most of them.
    assert found["groups"]["query_hr"]["multi_shot"]["Rank-1"] > 60
    content = update_tables.collect(folder, tmp_path / "row.json", f"LOMO + {metric}")
    assert f"LOMO + {metric}" in update_tables.make_table([content])


def test_euclidean_equals_ranks_by_hand(words, market_root: Path, tmp_path: Path):
    assert main(["classical", *words("euclidean", "Identity", "--no-retinex")]) == 0
    found = results(tmp_path / "euclidean_identity_noretinex")
    assert found["info"]["classical"]["retinex"] is False
    assert "train_images" not in found["info"]["classical"]

    def described(role: str) -> tuple[np.ndarray, list[int]]:
        files = sorted((market_root / "mlr_market1501" / role).glob("*.png"))
        images = [np.asarray(Image.open(f).resize((48, 128), Image.BICUBIC)) for f in files]
        return lomo(np.stack(images), False), [int(f.name[:4]) for f in files]

    query, q_pids = described("query")
    gallery, g_pids = described("gallery")
    distances = np.linalg.norm(query[:, None] - gallery[None], axis=2)
    right = np.array(g_pids)[distances.argmin(1)] == np.array(q_pids)
    rank_1 = found["groups"]["query"]["multi_shot"]["Rank-1"]
    assert rank_1 == pytest.approx(100 * right.mean(), abs=0.01)


def test_limit_keeps_some_identities_and_a_folder_of_its_own(words, tmp_path: Path):
    assert main(["classical", *words("xqda", "Bicubic", "--limit", "4")]) == 0
    found = results(tmp_path / "xqda_bicubic_limit4")
    assert found["info"]["limit"] == 4
    assert found["info"]["classical"]["train_identities"] == 4
    assert found["counts"]["identities"] == 4
    assert found["groups"]["query"]["queries"] == 4


def test_training_images_are_degraded_where_the_queries_camera_took_them(settings):
    cfg = settings("xqda", "Bicubic", "INPUT.LR.FACTORS", "[2, 4]")
    train, low = classical.training_set(cfg)
    assert len(train.samples) == len(low) == 36
    for sample, is_low in zip(train.samples, low, strict=True):
        assert is_low == (sample.camid == 0)
        assert sample.factor == sample.degrade
        assert sample.factor in ((2, 4) if is_low else (1,))
    assert {s.factor for s in train.samples} == {1, 2, 4}
    assert sorted({s.pid for s in train.samples}) == list(range(6))
    again, _ = classical.training_set(cfg)
    assert again.samples == train.samples
    other, _ = classical.training_set(settings("xqda", "Bicubic", "SEED", "5"))
    assert [s.factor for s in other.samples] != [s.factor for s in train.samples]
    ranged, _ = classical.training_set(settings("xqda", "Bicubic", "INPUT.LR.RANGE", "[5.0, 6.0]"))
    assert {5 <= s.factor < 6 for s in ranged.samples} == {True, False}


def test_identities_left_out_are_not_learned_from(settings):
    fold = settings("xqda", "Bicubic", "DATASETS.FOLD", "[0, 3]")
    train, _ = classical.training_set(fold)
    assert len({s.pid for s in train.samples}) == 4
    held_out = build_test_set(settings_on_fold(fold), "mlr_market1501")
    assert held_out.samples
    assert not {s.path for s in train.samples} & {s.path for s in held_out.samples}


def settings_on_fold(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.ON_FOLD = True
    return cfg


def test_checkpoint_of_a_learned_front_end(settings, words, tmp_path: Path):
    net = SRCNN(filters=(4, 3))
    with torch.no_grad():
        net.layers[4].bias.fill_(0.5)  # makes everything brighter
    weights = tmp_path / "srcnn.pth"
    torch.save({"model": {f"frontend.{k}": v for k, v in net.state_dict().items()}}, weights)
    opts = ("MODEL.SR.NAME", "SRCNN", "MODEL.SR.FILTERS", "[4, 3]", "MODEL.SR.APPLY", "lr")
    assert main(["classical", *words("euclidean", str(weights), "--limit", "4", *opts)]) == 0
    found = results(tmp_path / "euclidean_srcnn_limit4")
    assert found["checkpoint"].endswith("srcnn.pth")
    assert found["info"]["classical"]["sr"] == "SRCNN"

    cfg = settings("euclidean", str(weights), *opts)
    test_set = build_test_set(cfg, "mlr_market1501")
    frontend = classical.build_frontend(cfg).eval()
    plain = settings("euclidean", "Identity")
    batches = zip(
        classical.restored(cfg, frontend, test_set),
        classical.restored(plain, classical.build_frontend(plain), test_set),
        strict=True,
    )
    for (batch, bright), (_, as_read) in batches:
        for at, a, b in zip(batch["index"].tolist(), bright, as_read, strict=True):
            gain = float(a.mean()) - float(b.mean())
            assert (gain > 30) == (test_set.samples[at].factor > 1)


@pytest.mark.parametrize(
    ("sr", "opts", "message"),
    [
        ("SRCNN", (), "MODEL.SR.WEIGHTS"),
        ("Bicubik", (), "Did you mean 'Bicubic'"),
        (CONFIG, (), "MODEL.SR.NAME SRCNN"),
        ("Bicubic", ("TEST.METRIC", "cosine"), "TEST.METRIC: is always euclidean here"),
        ("Bicubic", ("INPUT.SIZE_TEST", "[64, 32]"), "INPUT.SIZE_TEST: is always"),
        ("Bicubic", ("MODEL.SR.APPLY", "some"), "MODEL.SR.APPLY: 'some'"),
        ("Bicubic", ("INPUT.LR.RANGE", "[3.0]"), "INPUT.LR.RANGE: two numbers"),
    ],
)
def test_faults_are_named(settings, sr: str, opts: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        settings("xqda", sr, *opts)


def test_data_without_pairs_across_views_is_refused(settings, monkeypatch: pytest.MonkeyPatch):
    cfg = settings("xqda", "Bicubic")
    train, low = classical.training_set(cfg)
    # Every image of the LR cameras belongs to people that no other camera saw.
    kept = [k for k, s in enumerate(train.samples) if low[k] == (s.pid < 3)]
    train = TestSet(train.name, [train.samples[k] for k in kept])
    monkeypatch.setattr(classical, "training_set", lambda *_: (train, low[kept]))
    batch = ({"index": torch.arange(len(kept))}, np.ones((len(kept), 26960), np.float32))
    with pytest.raises(ConfigError, match=r"mlr_market1501: can't be learned from: XQDA needs"):
        classical.trained(cfg, "xqda", 0, lambda _: iter([batch]))


def test_fault_on_the_command_line(words, capsys: pytest.CaptureFixture[str]):
    assert main(["classical", *words("xqda", "Bicubic", "INPUT.LR.FACTORS", "[0.5]")]) == 2
    assert "INPUT.LR.FACTORS" in capsys.readouterr().err
    assert main(["classical", *words("xqda", "Bicubic", "--limit", "1")]) == 2
