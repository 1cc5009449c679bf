"""A miniature data set in Market-1501's layout, and configs small enough for a test."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from lrreid_ext.cli import run_command
from lrreid_ext.config import CfgNode, load_cfg
from lrreid_ext.engine.trainer import Trainer

# The same examples in every run, so that what fails does so for whoever looks. Others are searched
# with `pytest --hypothesis-profile=search`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent

# Files of few tests that take long. They come first, so that processes which share the files
# (pytest -n 2 --dist loadfile --no-loadscope-reorder) end together.
LONG = (
    "test_systems", "test_training", "test_distributed", "test_export",
    "test_bench_ranking", "test_bench_export", "test_page", "test_plugins",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of :data:`LONG` first, the others as they came."""
    place = {name: k for k, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def load_script(path: str) -> ModuleType:
    """A script of the repository as a module: ``load_script("tools/demo.py")``."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def run_script(module: ModuleType, words: Sequence[str]) -> int:
    """Run a script that :func:`load_script` loaded; its exit status."""
    return run_command(module.__name__, module.__name__, words)


def _person(pid: int, camera: int, shot: int) -> Image.Image:
    """Coloured stripes by identity, brightness by camera, noise by shot; 64x32."""
    look = np.random.default_rng(pid)
    noise = np.random.default_rng([pid, camera, shot])
    stripes = look.integers(0, 255, (16, 1, 3)).repeat(4, 0).repeat(32, 1).astype(float)
    image = stripes * (0.8 + 0.1 * camera) + noise.normal(0, 8, (64, 32, 3))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def market_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``Market-1501-v15.09.15``: 6 training and 12 test people, three cameras."""
    root = tmp_path_factory.mktemp("sets")
    base = root / "Market-1501-v15.09.15"
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (base / folder).mkdir(parents=True)
    for pid in range(1, 19):
        for camera in (1, 2, 3):
            for shot in (1, 2):
                name = f"{pid:04d}_c{camera}s1_{shot:06d}_00.png"
                if pid <= 6:
                    folder = "bounding_box_train"
                else:
                    folder = "query" if shot == 1 else "bounding_box_test"
                _person(pid, camera, shot).save(base / folder / name)
    return root


TINY = [
    "MODEL.DEVICE", "cpu",
    "INPUT.SIZE_TRAIN", "[64, 32]",
    "INPUT.SIZE_TEST", "[64, 32]",
    "INPUT.PADDING.SIZE", "2",
    "DATALOADER.NUM_WORKERS", "0",
    "DATALOADER.NUM_INSTANCE", "2",
    "SOLVER.IMS_PER_BATCH", "8",
    "SOLVER.CHECKPOINT_PERIOD", "1",
    "TEST.NUM_WORKERS", "0",
    "TEST.TRIALS", "3",
    "TEST.FACTORS", "[2]",
    "DATASETS.NAMES", "['mlr_market1501']",
    "DATASETS.TESTS", "['mlr_market1501']",
]  # fmt: skip

TINY_OSNET = [*TINY, "MODEL.INIT.WEIGHTS", "", "SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "0"]

TINY_PSHRNET = [
    *TINY,
    "MODEL.BACKBONE.PRETRAIN", "False",
    "MODEL.BACKBONE.HRNET.WIDTH", "4",
    "MODEL.BACKBONE.HRNET.MODULES", "[1, 1, 1]",
    "MODEL.BACKBONE.HRNET.BLOCKS", "1",
    "MODEL.BACKBONE.HRNET.STAGE1_BLOCKS", "1",
    "MODEL.SR.DEPTH", "3",
    "MODEL.SR.WIDTH", "8",
    "PHASES.teacher.EPOCHS", "2",
    "PHASES.student.EPOCHS", "2",
    "TEST.EVAL_PERIOD", "0",
]  # fmt: skip


@pytest.fixture
def make_cfg(market_root: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    """``make_cfg(yaml, base options, *overrides)``: a config that writes below ``tmp_path``."""

    def make(yaml: str, options: list[str], *overrides: str, out: str = "run") -> CfgNode:
        torch.set_num_threads(1)
        paths = ["DATASETS.ROOT", str(market_root), "OUTPUT_DIR", str(tmp_path / out)]
        return load_cfg(str(ROOT / yaml), [*options, *paths, *overrides])

    return make


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.raw_model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def assert_resumes(make: Callable[[str], Trainer], epochs: int) -> Trainer:
    """A run that dies one batch after so many epochs ends, once resumed, in the same weights.

    Args:
        make: a trainer by the name of its output folder.
        epochs: which of them are whole.

    Returns:
        The resumed trainer.
    """
    whole, killed = make("whole"), make("killed")
    whole.train()
    killed_at(killed, epochs * killed.iters_per_epoch + 1)
    resumed = make("killed")
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == epochs
    resumed.train()
    assert_same(state(whole), state(resumed))
    return resumed


class Killed(Exception):
    pass


def killed_at(trainer: Trainer, iteration: int) -> None:
    """Run a trainer until it dies in the middle of that iteration's epoch."""
    step = trainer.run_step

    def dying() -> None:
        if trainer.iter == iteration:
            raise Killed
        step()

    trainer.run_step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.train()
