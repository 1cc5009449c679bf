"""Nothing half-written stays, and the old file survives a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrreid_ext.files import atomic, write_again, write_text


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


@pytest.mark.parametrize("links", (True, False))
def test_written_again_is_the_same_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
):
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    write_text(first, "one")
    write_text(second, "old")
    write_again(first, second)
    assert second.read_text() == "one" and first.samefile(second) == links
    write_text(first, "two")
    assert second.read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.txt", "second.txt"]
