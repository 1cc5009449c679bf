"""Realistic degradations: what is drawn, that the same draws give the same bytes, and the steps."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import mini_sets
import numpy as np
import pytest
from PIL import Image

from lrreid_ext.data.degrade import KERNELS, Draws, degrade
from lrreid_ext.data.kernels import REALISTIC
from lrreid_ext.data.kernels.steps import bell, blurred, compressed, gaussian, low_pass, noisy
from lrreid_ext.data.paired import PairedDataset, TestDataset
from lrreid_ext.data.recipes import build, build_recipe, load_manifest, test_set_of, verify
from lrreid_ext.data.samples import Sample, TestSet
from lrreid_ext.registry import DATASET_REGISTRY

COMPRESS = {"jpeg", "first-order", "second-order", "shuffled"}


def picture(height: int = 96, width: int = 40) -> Image.Image:
    """Slanted waves, in whole numbers."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.abs((rows * (9 + c) + columns * (7 + 4 * c)) % 256 - 128) for c in range(3)]
    return Image.fromarray((40 + np.stack(waves, -1)).astype(np.uint8))


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]


def reduced(kernel: str, name: str = "a", seed: int = 0, factor: float = 3) -> Image.Image:
    return degrade(picture(), factor, kernel, draws=Draws.hashed(name, seed))


# ---------------------------------------------------------------------- kernels


@pytest.mark.parametrize("kernel", REALISTIC)
@pytest.mark.parametrize(("factor", "size"), [(1.01, (95, 40)), (3, (32, 13)), (50, (2, 1))])
def test_sizes_and_draws(kernel: str, factor: float, size: tuple[int, int]) -> None:
    seen = set()
    for name in "abc":
        draws = Draws.hashed(name, 4)
        small = degrade(picture(), factor, kernel, draws=draws)
        assert (small.height, small.width, small.mode) == (*size, "RGB")
        assert draws.parameters
        assert json.loads(json.dumps(draws.parameters)) == draws.parameters
        again = Draws.hashed(name, 4)
        assert digest(degrade(picture(), factor, kernel, draws=again)) == digest(small)
        assert again.parameters == draws.parameters
        seen.add(digest(small))
    assert len(seen) == 3 or factor == 50
    assert digest(reduced(kernel)) != digest(reduced(kernel, seed=1))
    assert degrade(picture(), 1, kernel) == picture()


@pytest.mark.parametrize("kernel", REALISTIC)
def test_no_draws_is_refused(kernel: str) -> None:
    with pytest.raises(ValueError, match="given nothing to draw with"):
        degrade(picture(), 2, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_plain_kernels_draw_nothing(kernel: str) -> None:
    draws = Draws.hashed("a", 0)
    assert degrade(picture(), 3, kernel, draws=draws) == degrade(picture(), 3, kernel)
    assert draws.parameters == {}


def test_the_chains_reach_every_branch_and_stay_in_their_ranges() -> None:
    seen: dict[str, Counter] = {}
    for number in range(120):
        for kernel in ("first-order", "second-order", "shuffled"):
            draws = Draws.hashed(str(number), 0)
            degrade(picture(48, 20), 2 + number % 3, kernel, draws=draws)
            for key, value in draws.parameters.items():
                seen.setdefault(f"{kernel}: {key}", Counter())[json.dumps(value)] += 1
    for kernel in ("first-order", "second-order"):
        assert len(seen[f"{kernel}: first blur"]) == 7
        assert set(seen[f"{kernel}: first noise"]) == {'"gaussian"', '"shot"'}
    assert set(seen["second-order: first way"]) == {'"up"', '"down"', '"keep"'}
    assert len(seen["shuffled: order"]) > 40
    assert all(len(json.loads(order)) in (4, 5) for order in seen["shuffled: order"])
    ranges = {
        "second-order: first sigma": (0.2, 3),
        "second-order: second sigma": (0.2, 1.5),
        "second-order: first scale": (0.15, 1.5),
        "second-order: first noise sigma": (1, 30),
        "second-order: second noise scale": (0.05, 2.5),
        "second-order: second quality": (30, 95),
        "second-order: first blur size": (7, 21),
        "shuffled: round sigma": (0.1, 2.8),
        "shuffled: last quality": (30, 95),
    }
    for key, (low, high) in ranges.items():
        values = [json.loads(value) for value in seen[key]]
        assert low <= min(values) < max(values) <= high, key
    assert {json.loads(size) % 2 for size in seen["second-order: first blur size"]} == {1}


def test_second_order_never_has_fewer_pixels_than_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lrreid_ext.data.kernels import chains

    sizes = []
    original = chains.resized

    def resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
        sizes.append(size)
        return original(image, size, how)

    monkeypatch.setattr(chains, "resized", resized)
    for number in range(40):
        reduced("second-order", str(number), factor=2.5)
    assert min(sizes) == (38, 16) and max(sizes) > (96, 40)
    assert all(height >= 38 and width >= 16 for height, width in sizes)


# ---------------------------------------------------------------------- draws


def test_draws_by_hash_do_not_depend_on_order_and_are_kept() -> None:
    one, two = Draws.hashed("a", 1), Draws.hashed("a", 1)
    first = one.uniform("x", 2, 5), one.integer("y", 1, 6)
    second = two.integer("y", 1, 6), two.uniform("x", 2, 5)
    assert first == second[::-1]
    assert list(one.parameters) == ["x", "y"] and one.parameters == two.parameters
    assert round(first[0], 4) == first[0]
    with pytest.raises(ValueError, match="'x' is drawn twice"):
        one.uniform("x", 0, 1)


def test_what_is_drawn_is_as_probable_as_it_should_be() -> None:
    counts: Counter = Counter()
    orders: Counter = Counter()
    for number in range(3000):
        draws = Draws.hashed(str(number), 0)
        counts[draws.choice("c", {"a": 0.6, "never": 0.0, "b": 0.3, "c": 0.1})] += 1
        counts[draws.integer("i", 7, 21, step=2)] += 1
        orders[tuple(draws.order("o", ["x", "y", "z"]))] += 1
    assert set(counts) == {"a", "b", "c", *range(7, 22, 2)}
    assert abs(counts["a"] - 1800) < 120 and abs(counts["c"] - 300) < 70
    assert all(280 < counts[size] < 470 for size in range(7, 22, 2))
    assert len(orders) == 6 and min(orders.values()) > 400


def test_draws_at_random_follow_the_global_generator() -> None:
    random.seed(3)
    one = Draws.random().uniform("x", 0, 1)
    random.seed(3)
    assert Draws.random().uniform("any", 0, 1) == one == round(random.Random(3).random(), 4)


# ---------------------------------------------------------------------- steps


def test_blur_is_the_convolution_in_whole_numbers() -> None:
    image, weights = picture(12, 9), gaussian(5, (1.2, 0.6), 0.5)
    whole = np.rint(weights / weights.sum() * 65536)
    whole[2, 2] += 65536 - whole.sum()
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), "reflect").astype(int)
    expected = np.zeros((12, 9, 3), int)
    for i in range(5):
        for j in range(5):
            expected += int(whole[4 - i, 4 - j]) * padded[i : i + 12, j : j + 9]
    assert np.array_equal(np.asarray(blurred(image, weights)), (expected + 32768) // 65536)


def test_blur_weights() -> None:
    flat = Image.new("RGB", (5, 3), (7, 130, 250))
    kinds = [
        gaussian(21, (3, 0.2), 1.0),
        gaussian(7, (2, 2), shape="generalized", beta=4),
        gaussian(9, (2, 1), shape="plateau", beta=1.5),
        low_pass(13, np.pi / 3),
        low_pass(7, np.pi),
    ]
    for weights in kinds:
        assert np.allclose(weights, weights[::-1, ::-1])
        assert blurred(flat, weights) == flat  # smaller than the blur, and unchanged
    along, across = gaussian(9, (3, 1))[4, 8], gaussian(9, (3, 1))[8, 4]
    assert along == pytest.approx(np.exp(-((4 / 3) ** 2) / 2)) and across < along
    assert gaussian(9, (3, 1), np.pi / 2)[8, 4] == pytest.approx(along)
    assert gaussian(9, (2, 2), shape="plateau", beta=2)[4, 8] == pytest.approx(1 / 17)
    assert gaussian(9, (2, 2), shape="generalized", beta=0.5)[4, 8] == pytest.approx(np.exp(-1))
    # A low-pass lets slow waves through and stops fast ones.
    columns = np.arange(64)
    for period, kept in ((32, True), (3, False)):
        row = 128 + 100 * np.cos(2 * np.pi * columns / period)
        wave = Image.fromarray(np.broadcast_to(row[:, None], (64, 64, 3)).astype(np.uint8))
        spread = np.asarray(blurred(wave, low_pass(21, np.pi / 3)))[32, 10:-10].std()
        assert (spread > 60) == kept and (kept or spread < 12)


def test_noise() -> None:
    field = bell((400, 300), 5)
    assert abs(field.mean()) < 0.01 and abs(field.std() - 1) < 0.01 and abs(field).max() <= 6
    assert abs(np.mean(np.abs(field) < 1) - 0.6827) < 0.01
    assert np.array_equal(field, bell((400, 300), 5))
    assert not np.array_equal(field, bell((400, 300), 6))
    grey = Image.new("RGB", (200, 200), (100, 100, 100))
    added = np.asarray(noisy(grey, 1, sigma=10), float) - 100
    assert abs(added.std() - 10) < 0.2 and abs(added.mean()) < 0.2
    assert np.ptp(added, axis=-1).max() > 20
    same = np.asarray(noisy(grey, 1, sigma=10, grey=True), float)
    assert np.ptp(same, axis=-1).max() == 0 and abs(same.std() - 10) < 0.2
    for value in (25, 100):  # photons: twice the noise for four times the light
        lit = Image.new("RGB", (200, 200), (value,) * 3)
        shot = np.asarray(noisy(lit, 2, shot=1.0), float)
        assert shot.std() == pytest.approx(value**0.5, rel=0.03)


def test_compression_loses_more_at_low_quality() -> None:
    errors = [
        np.abs(np.asarray(compressed(picture(), quality), float) - np.asarray(picture())).mean()
        for quality in (95, 60, 30)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


# ---------------------------------------------------------------------- building with them


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_sets.market(tmp_path_factory.mktemp("market"))


@pytest.mark.parametrize("kernel", ["second-order", "blur"])
def test_the_manifest_says_what_was_drawn(
    kernel: str, market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrreid_ext.data.recipes.builder.CHUNK", 3)
    recipe = build_recipe("mlr_folder", {"kernel": kernel, "seed": 3})
    one = build(recipe, market, tmp_path / "one", workers=1, progress=False)
    two = build(recipe, market, tmp_path / "two", workers=2, progress=False)
    assert one == two == load_manifest(tmp_path / "one") and one.hash == two.hash
    assert verify(tmp_path / "one") == []
    for image in one.images:
        assert bool(image.parameters) == (image.role == "query")
        if image.role != "query":
            assert "parameters" not in image.to_json()
            continue
        assert image.kernel == kernel
        native = Image.open(market / image.source).convert("RGB")
        draws = Draws.hashed(Path(image.file).stem, 3)
        small = degrade(native, image.factor, kernel, draws=draws)
        assert draws.parameters == image.parameters
        assert digest(small) == digest(Image.open(tmp_path / "one" / image.file))
    # A changed parameter changes the hash.
    text = (tmp_path / "one" / "manifest.json").read_text()
    key, value = next(iter(one.of_role("query")[0].parameters.items()))
    line = json.dumps({key: value})[1:-1]
    (tmp_path / "one" / "manifest.json").write_text(text.replace(line, f'"{key}": 0.123', 1))
    assert "doesn't give its hash" in verify(tmp_path / "one")[0]


def test_a_twin_degraded_at_test_time_is_the_built_query(market: Path, tmp_path: Path) -> None:
    """Where the factors agree, for both draw by the file's name and the recipe's seed."""
    options = {"kernel": "second-order", "factors": [2], "seed": 7}
    data = DATASET_REGISTRY.get("mlr_folder")(
        root=str(tmp_path), source=str(market), options=options
    )
    test_set = test_set_of(data, "any", [2])
    read = TestDataset(test_set, np.asarray)
    images = {
        group: [read[i]["images"] for i, s in enumerate(test_set.samples) if s.group == group]
        for group in ("query", "x2")
    }
    assert len(images["query"]) == 2
    for built, twin in zip(images["query"], images["x2"], strict=True):
        assert np.array_equal(built, twin)


# ---------------------------------------------------------------------- training with them


def paired(files: list[Path], **options: object) -> PairedDataset:
    items = [(str(path), "p", "c") for path in files]
    return PairedDataset(items, np.asarray, factors=[2], kernel="second-order", **options)


def test_training_draws_by_the_samples_seed(market: Path) -> None:
    files = sorted((market / "bounding_box_train").iterdir())[:2]
    data = paired(files)
    one, again, other = (data[0, seed]["images_lr"] for seed in (5, 5, 6))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    state = random.getstate()
    data[0, 9]
    assert random.getstate() == state
    fixed = paired(files, fixed=1)
    assert np.array_equal(fixed[0, 5]["images_lr"], fixed[0, 6]["images_lr"])
    assert not np.array_equal(fixed[0, 5]["images_lr"], fixed[1, 5]["images_lr"])
    third = paired(files, synthetic=4.0)[0, 5]
    assert third["images_synthetic"].shape == (32, 16, 3)
    assert np.array_equal(third["images_lr"], one)


def test_test_images_draw_by_name_and_seed(market: Path) -> None:
    file = str(next((market / "query").iterdir()))
    samples = [Sample(file, 1, 1, "x2", 2.0, 2.0, kernel="noise", seed=seed) for seed in (0, 0, 1)]
    read = TestDataset(TestSet("any", samples), np.asarray)
    one, same, other = (read[i]["images"] for i in range(3))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
