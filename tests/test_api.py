"""Models and data sets from a program: the same features as the evaluator's, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_OSNET
from PIL import Image
from safetensors.torch import save_file

from lrreid_ext import TrainedModel, build_dataset, evaluate, load_model
from lrreid_ext.config import load_cfg
from lrreid_ext.data.loaders import build_test_set
from lrreid_ext.engine.trainer import Trainer
from lrreid_ext.errors import ConfigError, ImageError
from lrreid_ext.evaluation.features import extract_features
from lrreid_ext.evaluation.run import evaluate_trained
from lrreid_ext.files import write_text
from lrreid_ext.modeling.build import build_model
from lrreid_ext.weights import read_state_dict

SET = "mlr_market1501"


def trained(options: list[str], yaml: str, root: Path, out: Path) -> Path:
    """A run's folder as training leaves it."""
    torch.set_num_threads(1)
    paths = ["DATASETS.ROOT", str(root), "OUTPUT_DIR", str(out)]
    cfg = load_cfg(str(ROOT / yaml), [*options, *paths])
    write_text(out / "config.yaml", cfg.dump(sort_keys=False))
    Trainer(cfg).train()
    return out


@pytest.fixture(scope="module")
def run(market_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    options = [*TINY_OSNET, "SOLVER.MAX_EPOCH", "1", "MODEL.SR.NAME", "SRCNN"]
    return trained(options, "configs/osnet_copies.yml", market_root, out)


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(run)


def image_files(model: TrainedModel) -> list[str]:
    samples = build_test_set(model.cfg, SET).samples
    return [s.path for s in samples if s.group in ("query", "gallery")]


@pytest.mark.parametrize("flip", [False, True])
def test_embeds_as_the_evaluator_does(model: TrainedModel, flip: bool) -> None:
    test_set = build_test_set(model.cfg, SET)
    cfg = model.cfg.clone()
    cfg.defrost()
    cfg.TEST.FLIP.ENABLED = flip
    reference = extract_features(cfg, model.module, test_set)
    assert reference is not None
    stored = [i for i, s in enumerate(test_set.samples) if s.degrade == 1]
    files = [test_set.samples[i].path for i in stored]
    features = model.embed(files, batch_size=7, flip=flip)
    assert features.dtype == torch.float32 and features.shape == (len(files), 512)
    assert torch.allclose(features, reference.features[stored], atol=1e-6, rtol=1e-5)
    assert features.std(dim=0).max() > 1e-3  # a constant would pass any comparison


def test_every_kind_of_image_gives_the_same_features(model: TrainedModel) -> None:
    files = image_files(model)[:3]
    wanted = model.embed(files)
    opened = [Image.open(f) for f in files]
    arrays = [np.array(image.convert("RGB")) for image in opened]
    tensors = [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    for given in (
        [Path(f) for f in files],
        opened,
        arrays,
        tensors,
        [t.float() for t in tensors],
        [files[0], arrays[1], tensors[2][None]],
    ):
        assert torch.equal(model.embed(given), wanted)
    same = [a for a in arrays if a.shape == arrays[0].shape]
    assert torch.equal(model.embed(np.stack(same)), model.embed(same))
    assert torch.equal(model.embed(files[0]), model.embed(files[:1]))


def test_native_sizes_default_to_those_of_the_images(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def embed(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append((batch["native_size"].tolist(), batch["factor"].tolist()))
        return torch.zeros(len(batch["images"]), 2)

    monkeypatch.setattr(model.module, "embed", embed)
    images = [np.zeros((40, 20, 3), np.uint8), np.zeros((16, 8, 3), np.uint8)]
    model.embed(images)
    assert seen[-1][0] == [[40, 20], [16, 8]] and np.isnan(seen[-1][1]).all()
    model.embed(images, native_size=[[10, 5], [12, 6]], factor=[4, np.nan])
    assert seen[-1][0] == [[10, 5], [12, 6]] and seen[-1][1][0] == 4
    model.embed(images, native_size=(10, 5), factor=2)
    assert seen[-1] == ([[10, 5]] * 2, [2, 2])
    for wrong in ([[10, 5]] * 3, [0, 5], [10.5, 5]):
        with pytest.raises(ValueError, match="native_size"):
            model.embed(images, native_size=wrong)
    with pytest.raises(ValueError, match="factor"):
        model.embed(images, factor=[0.5, 2])
    with pytest.raises(ValueError, match="batch_size"):
        model.embed(images, batch_size=0)


WRONG = {
    "floats in 0-1": (torch.rand(3, 8, 8), "0 to 255: multiply by 255"),
    "normalised": (torch.randn(3, 8, 8), "not normalised"),
    "NaN": (torch.full((3, 8, 8), torch.nan), "0 to 255"),
    "channels last": (torch.zeros(8, 9, 3), "permute it"),
    "array, channels first": (np.zeros((3, 8, 9), np.uint8), "channels last: transpose it"),
    "float array": (np.zeros((8, 8, 3), np.float32), "uint8, 0 to 255, is needed, not float32"),
    "grey": (np.zeros((8, 8), np.uint8), r"not \(8, 8\)"),
    "int64 tensor": (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8 or floats"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "is needed"),
    "a number": (3, "int is no image"),
    "one of a list": ([np.zeros((8, 8, 3), np.uint8), None], "image 1: NoneType is no image"),
    "nothing": ([], "no images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_refused(model: TrainedModel, case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ImageError, match=message):
        model.embed(given)


def test_files_that_cannot_be_read_are_named(model: TrainedModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(image_files(model)[0]).read_bytes()[:200])
    for path, message in (
        (broken, "broken.png: can't be read"),
        (tmp_path / "none.png", "none.png: no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ImageError, match=message):
            model.embed([path])


def test_pil_images_that_cannot_be_read_are_named(model: TrainedModel, tmp_path: Path) -> None:
    whole = Path(image_files(model)[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.png") as cut, pytest.raises(ImageError, match="image 1: a PIL"):
        model.embed([Path(image_files(model)[0]), cut])
    closed = Image.open(image_files(model)[0])
    closed.close()
    with pytest.raises(ImageError, match="a PIL image can't be read"):
        model.embed(closed)


def test_the_mirror_image_counts_as_the_config_says(run: Path, model: TrainedModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8)
    flipped = load_model(run, opts=["TEST.FLIP.ENABLED", "True"])
    assert torch.equal(flipped.embed(image), model.embed(image, flip=True))
    assert torch.equal(flipped.embed(image, flip=False), model.embed(image))
    assert not torch.equal(flipped.embed(image), model.embed(image))


def test_restores_as_the_front_end_does(model: TrainedModel, tmp_path: Path) -> None:
    file = image_files(model)[0]
    restored = model.restore(file)
    assert restored.mode == "RGB" and restored.size == (32, 64)
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((32, 64), 3)))
    with torch.no_grad():
        direct = model.module.frontend(pixels.permute(2, 0, 1)[None].float()).images[0]
    wanted = direct.round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(restored), wanted.astype(np.uint8))
    with pytest.raises(ImageError, match="one at a time"):
        model.restore([file, file])


def test_loads_folders_checkpoints_and_safetensors(
    run: Path, model: TrainedModel, tmp_path: Path
) -> None:
    assert model.name == "small" and model.training["epochs"] == 1
    checkpoint = run / (run / "last_checkpoint").read_text()
    weights = {k: v.contiguous() for k, v in read_state_dict(checkpoint).items()}
    shared = tmp_path / "shared"
    shared.mkdir()
    shutil.copy(run / "config.yaml", shared)
    save_file(weights, shared / "model.safetensors")
    for path in (checkpoint, shared, shared / "model.safetensors"):
        assert load_model(path).hash == model.hash
    with pytest.raises(FileNotFoundError, match="no such run"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="device: 'gpu' is no device; cpu, cuda"):
        load_model(run, device="gpu")
    assert load_model(run, device=torch.device("cpu")).hash == model.hash
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            load_model(run, device="cuda")
    save_file(weights, shared / "other.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors, other\.safetensors"):
        load_model(shared)


def test_the_hash_tells_weights_and_what_decides_features(run: Path, model: TrainedModel) -> None:
    def hash_with(*opts: str) -> str:
        return load_model(run, opts=opts).hash

    assert hash_with("TEST.TRIALS", "1", "SOLVER.BASE_LR", "1") == model.hash
    assert hash_with("INPUT.SIZE_TEST", "[96, 48]") != model.hash
    assert hash_with("MODEL.SR.APPLY", "lr") != model.hash
    other = load_model(run)
    with torch.no_grad():
        next(other.module.parameters()).add_(1e-3)
    assert other.hash != model.hash


def test_features_of_anchors_stand_side_by_side(make_cfg: Any, tmp_path: Path) -> None:
    cfg = make_cfg(
        "configs/osnet_sing.yml", TINY_OSNET, "MODEL.HEADS.NUM_CLASSES", "6",
        "MODEL.ANCHORS.OF", "Pipeline", "MODEL.ANCHORS.FACTORS", "[2, 4]",
    )  # fmt: skip
    network = build_model(cfg)
    network.trained[0] = True
    write_text(tmp_path / "config.yaml", cfg.dump(sort_keys=False))
    torch.save(network.state_dict(), tmp_path / "anchors.pth")
    model = load_model(tmp_path / "anchors.pth")
    features = model.embed(np.zeros((2, 40, 20, 3), np.uint8))
    assert features.shape[:2] == (2, 2)
    assert features[:, 0].isfinite().all() and features[:, 1].isnan().all()
    assert model.training == {}


def test_evaluates_as_the_command_does(run: Path, model: TrainedModel, tmp_path: Path) -> None:
    wanted = evaluate_trained(model.cfg)[SET]
    before = sorted(p.name for p in run.iterdir())
    assert evaluate(model, SET) == wanted
    built = Path(model.cfg.DATASETS.ROOT, SET)
    assert evaluate(model, built) == wanted  # a folder
    assert sorted(p.name for p in run.iterdir()) == before
    once = evaluate(model, SET, out=tmp_path, trials=1, protocols=["single_shot"], HR=False)
    assert not any(k.startswith(("multi_shot", "single_shot/query_hr")) for k in once)
    written = json.loads((tmp_path / f"results_{SET}.json").read_text())
    assert written["trials"] == 1 and written["info"]["training"] == model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trails": 3}, "Did you mean 'TEST.TRIALS'"),
        ({"trials": "many"}, "TEST.TRIALS|many"),
        ({"metric": "manhattan"}, "TEST.METRIC: 'manhattan'"),
        ({"phase": "x"}, "load_model"),
    ],
)
def test_options_of_evaluate_are_checked(
    model: TrainedModel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(model, SET, **options)


def test_data_sets_that_are_not_there(model: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mlr_market1501'"):
        evaluate(model, "mlr_market1502")
    with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
        evaluate(model, tmp_path)


def test_builds_and_evaluates_what_it_built(model: TrainedModel, tmp_path: Path) -> None:
    small = {"identities": 8, "cameras": 2, "shots": 1, "height": 64, "width": 32}
    data = build_dataset("synth_pedestrians", None, tmp_path / "people", **small)
    assert data.folder == tmp_path / "people" and len(data.query) == 4
    figures = evaluate(model, data, trials=2)
    assert 0 <= figures["single_shot/query/Rank-1"] <= 100
    again = build_dataset("synth_pedestrians", None, tmp_path / "people", **small)
    assert again.manifest == data.manifest
    with pytest.raises(ValueError, match=r"identites.*identities"):
        build_dataset("synth_pedestrians", None, tmp_path / "other", identites=8)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be a folder"):
        build_dataset("synth_pedestrians", None, tmp_path / "file" / "people", **small)
