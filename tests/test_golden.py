"""Behaviour that a refactor must not change; see golden/record.py, which has more slow parts.

The training kills a run with SIGKILL, and resumes it in a new process.
"""

from __future__ import annotations

import pytest
from golden import record


@pytest.mark.parametrize("part", [*record.QUICK, "training_RAIN"])
def test_values_are_those_recorded(part: str) -> None:
    assert list(record.differences(part, record.computed(part))) == []
