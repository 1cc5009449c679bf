"""What a user is told, wherever it was raised."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, Dataset

from lrreid_ext.errors import ConfigError, ImageError, WeightsError


class Broken(Dataset[int]):
    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise self.kind("a.png: can't be read: no pixels\nat all")


@pytest.mark.parametrize("kind", [ImageError, ConfigError, WeightsError])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_loaders_workers_read_as_they_were_raised(
    kind: type[Exception], workers: int
) -> None:
    with pytest.raises(kind) as caught:
        next(iter(DataLoader(Broken(kind), num_workers=workers)))
    assert str(caught.value) == "a.png: can't be read: no pixels\nat all"


def test_other_texts_stay() -> None:
    assert str(ConfigError("Caught in the rain: a\nb: c")) == "Caught in the rain: a\nb: c"
