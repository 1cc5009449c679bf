"""Miniature trees of ordinary data sets, in their real layouts, of coloured noise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lrreid_ext.data.recipes import Manifest, PlannedImage, Recipe, build

#: People of the miniature VIPeR; the real numbers begin at 000 and have gaps, too.
VIPER_PEOPLE = (0, 1, 2, 5, 9, 31, 200, 873)
#: Of CAVIAR4REID: people seen by both cameras, and by the near one alone.
CAVIAR_BOTH, CAVIAR_ONE = (1, 2, 3, 4, 7, 8), (51, 60, 72)
#: Of CUHK03: people of each camera pair.
CUHK03_PEOPLE = (4, 2, 2, 1, 1)


def pixels(name: str, height: int = 16, width: int = 8) -> np.ndarray:
    """(H, W, 3) uint8, the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, height: int = 16, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels("/".join(path.parts[-3:]), height, width)).save(path)


def quiet(recipe: Recipe, source: Any, out: Path, workers: int | None = 1) -> Manifest:
    """Build without a bar, by default in this process."""
    return build(recipe, source, out, workers=workers, progress=False)


def plan(recipe: Recipe, source: Path) -> list[PlannedImage]:
    """What a recipe makes of the images below ``source``."""
    return recipe.plan(recipe.read(recipe.locate(source)))


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, by its path in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def viper(root: Path) -> Path:
    for camera, view in (("cam_a", 45), ("cam_b", 90)):
        for person in VIPER_PEOPLE:
            write(root / camera / f"{person:03d}_{view}.bmp", 128, 48)
    (root / "cam_a" / "Thumbs.db").write_bytes(b"not an image")
    return root


def prid(root: Path) -> Path:
    for camera in ("cam_a", "cam_b"):
        for person in (1, 2, 3, 5, 8, 13):
            write(root / camera / f"img_{person:04d}.png", 60 + person, 30)
            write(root / camera / f"mask_{person:04d}.png", 60 + person, 30)  # annotations
    return root


def caviar(root: Path) -> Path:
    for person in (*CAVIAR_BOTH, *CAVIAR_ONE):
        for shot in range(1, 11):
            write(root / f"{person:04d}{shot:03d}.jpg", 70 + shot, 30)
    for person in CAVIAR_BOTH:
        for shot in range(11, 21):
            write(root / f"{person:04d}{shot:03d}.jpg", 20 + shot, 12)
    return root


def cuhk01(root: Path, people: int = 6) -> Path:
    for pid in range(1, people + 1):
        for shot in (1, 2, 3, 4):
            write(root / f"{pid:04d}{shot:03d}.png", 160, 60)
    return root


def sysu(root: Path, flat: bool = False) -> Path:
    for person in range(1, 7):
        for camera in (1, 2):
            for shot in range(1, 6):
                if flat:
                    write(root / f"{person:04d}_c{camera}_{shot:02d}.jpg", 40, 20)
                else:
                    # The same names in every folder.
                    write(root / f"cam{camera}" / f"{person:04d}" / f"{shot:04d}.jpg", 40, 20)
    return root


def market(root: Path, cameras: int = 3, ending: str = "s1_000100_00.jpg") -> Path:
    for camera in range(1, cameras + 1):
        for person in (2, 7):
            write(root / "bounding_box_train" / f"{person:04d}_c{camera}{ending}", 128, 64)
        for person in (1, 3):
            write(root / "query" / f"{person:04d}_c{camera}{ending}", 128, 64)
            write(root / "bounding_box_test" / f"{person:04d}_c{camera}x{ending}", 128, 64)
        write(root / "bounding_box_test" / f"0000_c{camera}{ending}", 128, 64)
        write(root / "bounding_box_test" / f"-1_c{camera}{ending}", 128, 64)
    return root


def msmt17(root: Path, folders: tuple[str, str] = ("train", "test")) -> Path:
    def lines(folder: str, people: int, shots: range) -> str:
        listed = []
        for person in range(people):
            for shot in shots:
                camera = 1 + (person + shot) % 15
                name = f"{person:04d}/{person:04d}_{shot:03d}_{camera:02d}_0303morning_0008_0.jpg"
                # The first image of all is narrower than any width that is drawn.
                write(root / folder / name, 150 + shot, 20 if person == shot == 0 else 130 + shot)
                listed.append(f"{name} {person}\n")
        return "".join(listed)

    for name, folder, people, shots in (
        ("list_train.txt", folders[0], 3, range(0, 2)),
        ("list_val.txt", folders[0], 3, range(2, 3)),
        ("list_query.txt", folders[1], 4, range(0, 1)),
        ("list_gallery.txt", folders[1], 4, range(1, 4)),
    ):
        (root / name).write_text(lines(folder, people, shots))
    return root


def table(root: Path) -> Path:
    rows = ["path,identity,camera,split,note"]
    for person, split in (("ann", "train"), ("bo", "train"), ("cy", "test"), ("di", "test")):
        for camera in ("north", "south"):
            for shot in (1, 2):
                write(root / person / f"{camera}-{shot}.png", 40, 20)
                rows.append(f"{person}/{camera}-{shot}.png,{person},{camera},{split},x")
    write(root / "crowd.png", 40, 20)
    rows.append('"crowd.png",,south,gallery,"a note, with a comma"')
    (root / "images.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


# ---------------------------------------------------------------------- CUHK03


def cuhk03_cells() -> dict[tuple[str, int, int, int], np.ndarray]:
    """Images by kind of box, pair, person and column (each from 1); the columns 3, 4 and 8 to 10
    are empty, and the last person of pair 1 wasn't seen by the second camera."""
    return {
        (kind, pair, person, column): pixels(f"{kind} {pair} {person} {column}", 30 + column, 12)
        for kind in ("labeled", "detected")
        for pair, people in enumerate(CUHK03_PEOPLE, start=1)
        for person in range(1, people + 1)
        for column in (1, 2, 5, 6, 7)
        if (pair, person) != (1, 4) or column < 6
    }


def cuhk03_tests(split: int) -> list[tuple[int, int]]:
    """(pair, person) of the three test people of one split."""
    return [(1, 1 + split % 3), (2, 1 + split % 2), (3, 1 + split % 2)]


def cuhk03_folders(root: Path, splits: bool = True) -> Path:
    for (kind, pair, person, column), image in cuhk03_cells().items():
        view = 1 if column <= 5 else 2
        path = root / f"images_{kind}" / f"{pair}_{person:03d}_{view}_{column:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    if splits:
        content = []
        for split in range(20):
            train, query = [], []
            for path in sorted((root / "images_labeled").iterdir()):
                person = tuple(int(part) for part in path.stem.split("_")[:2])
                side = query if person in cuhk03_tests(split) else train
                side.append([f"/home/of/another/{path.name}", 0, 0])
            content.append({"train": train, "query": query, "gallery": query})
        (root / "splits_classic_labeled.json").write_text(json.dumps(content))
    return root


def cuhk03_mat(root: Path) -> Path:
    """``cuhk-03.mat`` as MATLAB 7.3 lays it out: axes reversed, cells by reference."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    cells = cuhk03_cells()
    reference = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(root / "cuhk-03.mat", "w") as file:
        store = file.create_group("#refs#")

        def keep(data: Any, **how: Any) -> Any:
            return store.create_dataset(f"x{len(store)}", data=data, **how).ref

        empty = keep(np.zeros(2, np.uint64))
        for kind in ("labeled", "detected"):
            outer = file.create_dataset(kind, (1, len(CUHK03_PEOPLE)), dtype=reference)
            for pair, people in enumerate(CUHK03_PEOPLE, start=1):
                inner = store.create_dataset(f"{kind}{pair}", (10, people), dtype=reference)
                for person in range(1, people + 1):
                    for column in range(1, 11):
                        image = cells.get((kind, pair, person, column))
                        inner[column - 1, person - 1] = empty if image is None else keep(image.T)
                outer[0, pair - 1] = inner.ref
        tests = file.create_dataset("testsets", (1, 20), dtype=reference)
        for split in range(20):
            tests[0, split] = keep(np.array(cuhk03_tests(split), float).T)
    return root
