"""Behaviour that a refactor must not change; see golden/record.py, which also has slow parts."""

from __future__ import annotations

import pytest
from golden import record


@pytest.mark.parametrize("part", record.QUICK)
def test_values_are_those_recorded(part: str) -> None:
    assert list(record.differences(part, record.computed(part))) == []
