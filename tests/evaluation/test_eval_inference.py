from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from fastreid.evaluation import DatasetEvaluator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lrreid_ext.evaluation import extract
from lrreid_ext.modeling.inference import Isolated


class Images(Dataset):
    def __init__(self, count: int) -> None:
        self.images = torch.rand(count, 3, 8, 6, generator=torch.Generator().manual_seed(0)) * 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": self.images[index], "index": index}


class InPlace(nn.Module):
    """Normalises its input in place, as fastreid's Baseline does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        batch["images"].sub_(120).div_(60)
        features = self.norm(self.conv(batch["images"])).relu()
        weights = torch.arange(features.shape[3], device=features.device)
        return (features * weights).mean(dim=(2, 3))  # a mirror image has other features


class Keep(DatasetEvaluator):
    def reset(self) -> None:
        self.features: list[torch.Tensor] = []
        self.indices: list[torch.Tensor] = []

    def process(self, inputs: dict[str, Any], outputs: torch.Tensor) -> None:
        assert not outputs.requires_grad
        self.features.append(outputs)
        self.indices.append(inputs["index"])

    def evaluate(self) -> dict[str, Any]:
        return {"features": torch.cat(self.features), "index": torch.cat(self.indices)}


@pytest.mark.parametrize("count", [1, 4, 10])
def test_flip_is_the_mean_of_two_passes(count: int) -> None:
    data, model = Images(count), InPlace()
    original = data.images.clone()
    loader = DataLoader(data, batch_size=4)
    found = extract(model, loader, Keep(), flip=True)
    assert found["index"].tolist() == list(range(count))
    assert torch.equal(data.images, original)
    model.eval()
    with torch.no_grad():
        one = model({"images": original.clone()})
        two = model({"images": original.flip(3).clone()})
    assert not torch.allclose(one, two)
    torch.testing.assert_close(found["features"], (one + two) / 2)
    torch.testing.assert_close(extract(model, loader, Keep())["features"], one)


def test_the_batch_stays_as_it_was() -> None:
    batch = {"images": torch.rand(2, 3, 8, 6), "index": torch.arange(2), "img_paths": ["a", "b"]}
    before = batch["images"].clone()
    Isolated(InPlace())(batch)
    assert torch.equal(batch["images"], before)
    assert batch["img_paths"] == ["a", "b"]


def test_tensors_reach_the_models_device() -> None:
    class Where(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, batch: dict[str, Any]) -> dict[str, str]:
            return {k: v.device.type for k, v in batch.items() if isinstance(v, torch.Tensor)}

    batch = {"images": torch.zeros(1, 3, 2, 2), "native_size": torch.ones(1, 2), "img_paths": ["a"]}
    assert Isolated(Where())(batch) == {"images": "meta", "native_size": "meta"}


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_are_put_back(fails: bool) -> None:
    class Failing(InPlace):
        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            assert not any(module.training for module in self.modules())
            if fails and int(batch["index"][0]) > 0:
                raise RuntimeError("in the middle")
            return super().forward(batch)

    model = Failing().train()
    model.norm.eval()  # frozen
    loader = DataLoader(Images(8), batch_size=4)
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            extract(model, loader, Keep())
    else:
        extract(model, loader, Keep())
    assert (model.training, model.conv.training, model.norm.training) == (True, True, False)


def test_progress_only_where_somebody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = DataLoader(Images(4), batch_size=2)
    extract(InPlace(), loader, Keep())
    assert "features" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    extract(InPlace(), loader, Keep())
    assert "features" in capsys.readouterr().err
