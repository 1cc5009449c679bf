"""Training curves from what a training writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lrreid_ext.config import get_cfg
from lrreid_ext.errors import ConfigError
from lrreid_ext.report.history import draw, phase_starts, read_history, smooth, until


def write(path: Path, rows: list, end: str = "\n") -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + end)
    return path


def test_what_was_logged_last_of_an_iteration_counts(tmp_path: Path):
    rows = [
        {"iteration": 0, "total_loss": 3.0, "lr": 0.1},
        {"iteration": 10, "total_loss": 2.0},
        {"iteration": 5, "total_loss": 2.5},
        {"iteration": 10, "total_loss": 1.5, "note": "text"},
    ]
    found = read_history(write(tmp_path / "metrics.json", rows))
    assert found["total_loss"][0].tolist() == [0, 5, 10]
    assert found["total_loss"][1].tolist() == [3.0, 2.5, 1.5]
    assert found["lr"][1].tolist() == [0.1]
    assert set(found) == {"total_loss", "lr"}


def test_a_cut_last_line_is_passed_over_and_a_bad_one_is_named(tmp_path: Path):
    good = {"iteration": 0, "total_loss": 1.0}
    found = read_history(write(tmp_path / "a.json", [good, '{"iteration": 1, "total'], end=""))
    assert found["total_loss"][0].tolist() == [0]
    with pytest.raises(ConfigError, match=r"b\.json, line 1: not a logged figure"):
        read_history(write(tmp_path / "b.json", ['{"total_loss": 1.0}', good]))
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path / "none.json")


@pytest.mark.parametrize("width", [0, 1, 3, 4, 50])
def test_smoothing_is_the_mean_of_the_neighbours(width: int):
    values = np.random.default_rng(0).normal(size=20)
    half = max(width, 1) // 2
    expected = [np.mean(values[max(i - half, 0) : i + half + 1]) for i in range(20)]
    np.testing.assert_allclose(smooth(values, width), expected)


def test_phases_begin_where_their_epochs_do():
    cfg = get_cfg()
    assert phase_starts(cfg, 99) == []
    cfg.PHASES["first"] = {"EPOCHS": 2}
    cfg.PHASES["second"] = {"EPOCHS": 3}
    assert phase_starts(cfg, 99) == [("first", 0.0), ("second", 40.0)]
    cfg.PHASES["second"] = {"EPOCHS": 3, "SOLVER": {"IMS_PER_BATCH": 8}}
    assert phase_starts(cfg, 99) == []


def test_the_figure_has_a_panel_for_each_kind_that_was_logged():
    x = np.arange(100.0)
    losses = {"loss_a": (x, 100 / (x + 1)), "total_loss": (x, 200 / (x + 1))}
    others = {"lr": (x, x), "time": (x, x), "cls_accuracy": (x, np.full(100, 0.5))}
    loss, accuracy, rate = draw({**losses, **others}, [("one", 0.0)]).axes
    assert [a.get_title() for a in (loss, rate)] == ["loss", "learning rate"]
    assert [line.get_label() for line in loss.lines[:2]] == ["total loss", "a"]
    assert loss.get_yscale() == "log" and rate.get_yscale() == "linear"
    assert accuracy.get_title() == "accuracy in training (%)"
    assert set(accuracy.lines[0].get_ydata().round(9)) == {50}


def test_curves_end_where_a_checkpoint_was_saved():
    x = np.arange(10.0)
    cut = until({"total_loss": (x, 2 * x), "loss_late": (x[6:], x[6:])}, 4.0)
    assert list(cut) == ["total_loss"]
    assert cut["total_loss"][0].tolist() == [0, 1, 2, 3, 4]
    assert cut["total_loss"][1].tolist() == [0, 2, 4, 6, 8]
