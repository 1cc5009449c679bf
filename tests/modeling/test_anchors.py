"""Anchors: one model for each factor, whatever its architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY_OSNET
from mini_systems import MINI

from lrreid_ext.errors import ConfigError
from lrreid_ext.modeling.build import build_model
from lrreid_ext.modeling.meta_arch import Anchors

YAML = "configs/osnet_sing.yml"
OPTIONS = [*TINY_OSNET, *MINI, "MODEL.HEADS.NUM_CLASSES", "6", "MODEL.ANCHORS.OF", "Pipeline"]


@pytest.fixture
def model(make_cfg: Any) -> Anchors:
    built = build_model(make_cfg(YAML, OPTIONS, "MODEL.ANCHORS.FACTORS", "[2, 2.5, 4]"))
    assert isinstance(built, Anchors)
    return built.eval()


def batch(count: int = 4, **more: Any) -> dict[str, Any]:
    images = 255 * torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[64, 32]] * count)
    return {"images": images, "native_size": sizes, "factor": torch.ones(count), **more}


@pytest.mark.parametrize(
    ("step", "current", "inner"),
    [
        ("", 2, "reid"),
        ("x2", 0, "reid"),
        ("x2.5", 1, "reid"),
        ("x2.sr", 0, "sr"),
        ("x2.5.sr", 1, "sr"),
        ("x4", 2, "reid"),
    ],
)
def test_a_step_names_an_anchor_and_its_step(
    model: Anchors, step: str, current: int, inner: str
) -> None:
    model.set_step(step)
    assert model.current == current
    assert model.model(current).step == inner


def test_features_of_all_anchors_stand_side_by_side_nan_of_untrained_ones(model: Anchors) -> None:
    data = batch()
    learning = batch(8, targets=torch.arange(8) % 6, images_hr=batch(8)["images"])
    for step, ready in (("x2.5", {1}), ("x4", {1, 2}), ("x2", {0, 1, 2})):
        model.set_step(step)
        model.train()(learning)
        features = model.eval()(data)
        assert features.shape[:2] == (4, 3)
        for k in range(3):
            if k in ready:
                torch.testing.assert_close(features[:, k], model.model(k).embed(data))
            else:
                assert features[:, k].isnan().all()
    assert not torch.equal(features[:, 0], features[:, 1])
    assert model.state_dict()["trained"].tolist() == [True] * 3


def test_only_the_steps_anchor_learns(model: Anchors) -> None:
    model.train()
    model.set_step("x2.5")
    data = batch(8, targets=torch.arange(8) % 6, images_hr=batch(8)["images"])
    sum(model(data).losses.values()).backward()
    touched = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"x2_5"}


def test_each_image_is_restored_by_the_anchor_nearest_to_its_factor(model: Anchors) -> None:
    for k in range(3):
        front = model.model(k).frontend
        front.forward = lambda images, native=None, k=k: type(  # type: ignore[method-assign]
            "Output", (), {"images": images * 0 + k}
        )()
    model.trained.fill_(True)
    data = batch(5, factor=torch.tensor([1.0, 2.0, 2.4, 8.0, float("nan")]))
    assert model.restore(data).images[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 0]
    model.trained[1] = False
    assert model.restore(data).images[:, 0, 0, 0].tolist() == [0, 0, 0, 2, 0]


@pytest.mark.parametrize("factors", ["[]", "[2, 2.0]", "[0.5, 2]"])
def test_impossible_factors_are_refused(make_cfg: Any, factors: str) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.ANCHORS\.FACTORS"):
        build_model(make_cfg(YAML, OPTIONS, "MODEL.ANCHORS.FACTORS", factors))


def test_unknown_steps_and_architectures_are_named(make_cfg: Any, model: Anchors) -> None:
    with pytest.raises(ConfigError, match=r"'x3' names none of the anchors x2, x2\.5, x4"):
        model.set_step("x3")
    with pytest.raises(ConfigError, match="no step 'joint'"):
        model.set_step("x4.joint")
    with pytest.raises(ConfigError, match=r"MODEL\.ANCHORS\.OF: Baseline is no Pipeline"):
        build_model(make_cfg(YAML, OPTIONS, "MODEL.ANCHORS.OF", "Baseline"))
