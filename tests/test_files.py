"""Nothing half-written stays, and the old file survives a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrreid_ext.files import atomic, write_text


def test_a_failure_keeps_the_old_file(tmp_path: Path):
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
    write_text(target, "new")
    assert target.read_text() == "new"
