from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import load_script, run_script
from mini_results import results

from lrreid_ext.results import Figure, Results, Training, mean_of, portable

ROOT = Path(__file__).resolve().parent.parent
MACHINE = {"processors": 2, "cpu": "Some CPU", "torch": "2.9", "python": "3.11.1"}
COMMAND = "tools/train_net.py --config-file /home/me/cfg/a.yml DATASETS.ROOT /data/sets X 1"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/update_tables.py")


TRAINING = Training(
    command=COMMAND, commit="aaa1111", machine={**MACHINE, "gpu": "Some GPU", "gpus": 2},
    seed=3, phase="student", epochs=10, of=10,
)  # fmt: skip


def measured(rank1: float, **changes: Any) -> Results:
    return results(
        rank1, info={"folder": "/data/sets/my demo"}, training=TRAINING, commit="bbb2222",
        command="tools/train_net.py --eval-only '--weights=/my runs/model.pth'",
        machine=MACHINE, checkpoint="/my runs/model.pth", **changes,
    )  # fmt: skip


def run_folder(folder: Path, content: Results) -> Path:
    content.save(folder / "results_demo.json")
    return folder


@pytest.fixture
def project(tool: ModuleType, tmp_path: Path) -> Path:
    """A folder with a README and two collected results, added out of order."""
    for name, rank1, order in (("b", 40.0, "1"), ("a", 45.0, "2")):
        twins = "x4" if name == "a" else "x2"
        content = measured(rank1, groups=("query", "query_hr", twins))
        run = run_folder(tmp_path / "logs" / name, content)
        to = tmp_path / "project" / "results" / f"{name}.json"
        assert run_script(tool, 
            ["add", str(run), "--to", str(to), "--title", f"Run {name}", "--order", order]
        ) == 0  # fmt: skip
    readme = tmp_path / "project" / "README.md"
    readme.write_text(
        "# P\n\n<!-- table: results/*.json -->\nold\n<!-- /table -->\n\nAfter.\n"
    )  # fmt: skip
    return tmp_path / "project"


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_of_the_repository_are_up_to_date(tool: ModuleType) -> None:
    stale = []
    for path in sorted(ROOT.rglob("*.md")):
        parts = path.relative_to(ROOT).parts
        if any(part.startswith(".") or part in ("logs", "datasets", "build") for part in parts):
            continue
        before, after = tool.updated(path)
        if before != after:
            stale.append(str(path.relative_to(ROOT)))
    assert not stale, f"run tools/update_tables.py write {' '.join(stale)}"


def test_no_collected_file_names_a_machine_path(tool: ModuleType) -> None:
    collected = sorted(ROOT.glob("projects/*/results/*.json"))
    for path in collected:
        content = json.loads(path.read_text())
        assert portable(content) == content, path
        assert path.stat().st_size <= tool.MOST_BYTES, path


def test_add_keeps_figures_and_drops_paths(tool: ModuleType, tmp_path: Path) -> None:
    content = measured(40.0)
    to = tmp_path / "new" / "a.json"
    run = run_folder(tmp_path / "run", content)
    words = ["add", str(run), "--to", str(to), "--title", "A", "--note", "on /tmp/x only"]
    assert run_script(tool, words) == 0
    added = json.loads(to.read_text())
    assert added["groups"] == content.to_json()["groups"]
    assert (added["title"], added["note"], "order" in added) == ("A", "on /tmp/x only", False)
    assert added["info"]["folder"] == ".../my demo"
    assert added["checkpoint"] == ".../model.pth"
    assert added["info"]["training"]["command"] == (
        "tools/train_net.py --config-file .../a.yml DATASETS.ROOT .../sets X 1"
    )
    assert shlex.split(added["command"])[-1] == "--weights=.../model.pth"
    assert added["machine"] == MACHINE


def test_a_mean_over_splits_names_each_of_them(tool: ModuleType, tmp_path: Path) -> None:
    one, two = measured(40.0), measured(60.0, manifest_hash="fedcba9876543210")
    mean = mean_of({"one": one, "two": two})
    to = tmp_path / "mean.json"
    run = run_folder(tmp_path / "run", mean)
    assert run_script(tool, ["add", str(run), "--to", str(to), "--title", "Mean"]) == 0
    page = tmp_path / "page.md"
    page.write_text("<!-- table: mean.json columns=single_shot/query/Rank-1 -->\n<!-- /table -->\n")
    assert run_script(tool, ["write", str(page)]) == 0
    text = page.read_text()
    # 39 and 41, 59 and 61.
    assert "50.0 ± 11.6" in text
    assert "2 splits x 2 trials, manifest 0123456789ab, fedcba987654." in text
    assert "the first of 2 splits):" in text
    assert COMMAND.split()[0] in text


def test_large_files_leave_their_trials_behind(tool: ModuleType, tmp_path: Path) -> None:
    content = measured(40.0)
    content.groups["x2"].protocols["single_shot"].trials = [[1.0] * 4] * 1000
    to = tmp_path / "a.json"
    tool.collect(run_folder(tmp_path / "run", content), to, "A")
    assert to.stat().st_size < tool.MOST_BYTES
    shot = json.loads(to.read_text())["groups"]["x2"]["single_shot"]
    assert shot == {"unmatched": 0, "Rank-1": 40.0, "Rank-1_std": 1.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b/c.pth", ".../c.pth"),
        ("/my dir/run 1/", ".../run 1"),
        ("--out=/a/b", "--out=.../b"),
        ("OUTPUT=/a/b", "OUTPUT=.../b"),
        ("['/a b/c d', '/e/f']", "['.../c d', '.../f']"),
        ("{root: /a/b}", "{root: .../b}"),
        ("in ~/a/b, or (/c/d)", "in .../b, or (.../d)"),
        ("file:///a/store", ".../store"),
        (r"C:\people\me\w.pth", ".../w.pth"),
        ("PATH:/a/b:/c/d", "PATH:.../b:.../d"),
        ("http://host/a tcp://1.2.3.4:90", "http://host/a tcp://1.2.3.4:90"),
        ("q/gallery, 1 / 2, ../x, ./y", "q/gallery, 1 / 2, ../x, ./y"),
        (r"['\d+', '^fc\.', '']", r"['\d+', '^fc\.', '']"),
        (".../x", ".../x"),
    ],
)
def test_paths(tool: ModuleType, text: str, expected: str) -> None:
    assert portable({"k": [text]}) == {"k": [expected]}
    assert shlex.split(portable(shlex.join(["x.py", text]), "command")) == ["x.py", expected]
    assert portable(expected) == expected


def test_write_then_check(
    tool: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = project / "README.md"
    before = readme.read_text()
    assert run_script(tool, ["write", str(readme), "--check"]) == 1
    assert f"{readme}: stale" in capsys.readouterr().err
    assert readme.read_text() == before

    assert run_script(tool, ["write", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("# P\n\n<!-- table: results/*.json -->\n\n|")
    assert text.endswith("\n<!-- /table -->\n\nAfter.\n") and "old" not in text
    header, _, first, second = rows(text)
    assert header == ["run", "MLR Rank-1", "HR -> HR", "x2", "x4", "MLR mAP (multi-shot)"]
    assert first == ["Run b", "40.0 ± 1.0", "40.0 ± 1.0", "40.0 ± 1.0", "", "20.0"]
    assert second == ["Run a", "45.0 ± 1.0", "45.0 ± 1.0", "", "45.0 ± 1.0", "22.5"]
    assert run_script(tool, ["write", str(readme), "--check"]) == 0

    changed = Results.load(project / "results" / "a.json")
    changed.groups["query"].protocols["single_shot"].named["Rank-1"] = Figure(46.0)
    changed.save(project / "results" / "a.json")
    assert run_script(tool, ["write", str(readme), "--check"]) == 1
    assert sorted(p.name for p in project.iterdir()) == ["README.md", "results"]


def test_where_the_figures_came_from(tool: ModuleType, project: Path) -> None:
    _, text = tool.updated(project / "README.md")
    source = (
        "commit bbb2222; 2 x Some CPU, torch 2.9, python 3.11.1; "
        "seed 0, 2 trials, manifest 0123456789ab."
    )
    assert text.count("easured at") == 1 and f"\nMeasured at {source}\n" in text
    assert text.count("<details>") == text.count("</details>") == 2
    details = text[text.index("<details><summary>Run b: commands</summary>") :]
    assert (
        "Trained (commit aaa1111; 2 x Some GPU, 2 x Some CPU, torch 2.9, python 3.11.1; seed 3; "
        "phase student; epochs 10 of 10):\n\n```\ntools/train_net.py --config-file .../a.yml "
    ) in details
    assert "Evaluated:\n\n```\ntools/train_net.py --eval-only --weights=.../model.pth\n```" in text

    other = Results.load(project / "results" / "a.json")
    other = replace(other, commit="", note="a < b | c")
    replace(other, training=replace(TRAINING, epochs=5)).save(project / "results" / "a.json")
    _, text = tool.updated(project / "README.md")
    assert f"\n- Run b: measured at {source}\n- Run a: measured at commit unknown; 2 x" in text
    assert "\n- Run a: a &lt; b \\| c\n- Run a: weights after 5 of 10 epochs.\n" in text

    replace(other, training=None, machine={}, note="").save(project / "results" / "a.json")
    _, text = tool.updated(project / "README.md")
    assert text.count("Trained (") == 1 and "commit unknown; machine unknown;" in text


def test_chosen_columns_and_examples_in_code(tool: ModuleType, project: Path) -> None:
    readme = project / "README.md"
    example = "```\n<!-- table: none/*.json -->\n<!-- /table -->\n```\n"
    marker = "<!-- table: results/a.json columns=multi_shot/x4/mAP,single_shot/query/Rank-1 -->"
    readme.write_text(f"{example}\n{marker}\n<!-- /table -->\n")
    _, text = tool.updated(readme)
    assert text.startswith(example)
    header, _, row = rows(text)
    assert header == ["run", "x4 mAP (multi-shot)", "MLR Rank-1"]
    assert row == ["Run a", "22.5", "45.0 ± 1.0"]


def test_a_brief_table_has_neither_sources_nor_commands(tool: ModuleType, project: Path) -> None:
    readme = project / "README.md"
    readme.write_text("<!-- table: results/a.json -->\n<!-- /table -->\n")
    _, full = tool.updated(readme)
    readme.write_text("<!-- table: results/a.json brief -->\n<!-- /table -->\n")
    _, brief = tool.updated(readme)
    assert rows(brief) == rows(full)
    assert "single-shot, " in brief and "commands</summary>" in full and "Measured at" in full
    assert "commands</summary>" not in brief and "easured at" not in brief


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: none/*.json -->\n<!-- /table -->", "README.md:1: no file matches none/"),
        ("<!-- table: /x/*.json -->\n<!-- /table -->", "relative to the Markdown file's folder"),
        ("x\n<!-- table results/*.json -->\n", r"README.md:2: write <!-- table: PATTERN -->"),
        ("<!-- table: results/*.json -->\nold\n", "README.md:1: no <!-- /table --> after this"),
        ("\n<!-- /table -->\n", "README.md:2: <!-- /table --> without a table"),
        (
            "<!-- table: results/*.json -->\n<!-- table: results/*.json -->\n<!-- /table -->",
            "README.md:1: no <!-- /table --> before the next table",
        ),
        (
            "<!-- table: results/*.json columns=mAP -->\n<!-- /table -->",
            "'mAP': write protocol/group/figure",
        ),
        (
            "<!-- table: results/*.json columns=multi_shot/x9/mAP -->\n<!-- /table -->",
            "no row has a figure for the column multi_shot/x9/mAP",
        ),
        ("<!-- table: bad/untitled.json -->\n<!-- /table -->", "untitled.json: no title"),
        ("<!-- table: bad/broken.json -->\n<!-- /table -->", "broken.json: can't be read"),
    ],
)
def test_markers_that_cannot_be_followed(
    tool: ModuleType,
    project: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    (project / "bad").mkdir()
    results().save(project / "bad" / "untitled.json")
    (project / "bad" / "broken.json").write_text("{")
    readme = project / "README.md"
    readme.write_text(text)
    assert run_script(tool, ["write", str(readme)]) == 2
    assert message in capsys.readouterr().err
    assert readme.read_text() == text


def test_runs_that_cannot_be_added(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", results())
    to = tmp_path / "out.json"

    def refused(*words: str) -> str:
        assert run_script(tool, ["add", *words]) == 2
        assert not to.exists()
        return capsys.readouterr().err

    assert "holds no results_*.json" in refused(str(tmp_path), "--to", str(to), "--title", "A")
    assert "must end in .json" in refused(str(run), "--to", str(tmp_path), "--title", "A")
    assert "write one line" in refused(str(run), "--to", str(to), "--title", " ")
    (run / "results_other.json").write_text('{"groups": {}}')
    assert "results_demo.json, results_other.json" in refused(
        str(run), "--to", str(to), "--title", "A"
    )
    assert "not a results file" in refused(
        str(run / "results_other.json"), "--to", str(to), "--title", "A"
    )
    assert (
        run_script(tool, ["add", str(run / "results_demo.json"), "--to", str(to), "--title", "A"])
        == 0
    )
