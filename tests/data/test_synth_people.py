"""Synthetic pedestrians: determinism, arguments, look-alikes, what resolution takes away."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from lrreid_ext.data.synth import CLUSTER_SIZE, NUM_CAMERAS, appearance_of, cluster_of, render
from lrreid_ext.data.synth.canvas import Canvas, fill, profile
from lrreid_ext.data.synth.draws import Draws
from lrreid_ext.data.synth.pose import View, joints
from lrreid_ext.data.synth.textures import PATTERNS, Texture, weave


def _hash(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def test_same_arguments_same_bytes():
    for camera in range(NUM_CAMERAS):
        first = render(7, camera, 3, seed=5)
        for other in range(4):
            render(other, camera, 1)  # no state is carried from one image to the next
        np.testing.assert_array_equal(first, render(7, camera, 3, seed=5))


def test_every_argument_matters():
    base = {"identity": 3, "camera": 1, "shot": 2, "seed": 0}
    hashes = [_hash(render(**base))]
    for name in base:
        hashes.append(_hash(render(**{**base, name: base[name] + 1})))
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "size", [(128, 64), (256, 128), (64, 32), (160, 60), (32, 16), (384, 128), (40, 200)]
)
def test_shape_type_and_content(size):
    height, width = size
    image = render(2, 3, 0, height=height, width=width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_sizes_show_the_same_picture():
    small = render(9, 0, 1, height=64, width=32).astype(float)
    large = Image.fromarray(render(9, 0, 1, height=256, width=128))
    reduced = np.asarray(large.reduce(4)).astype(float)
    other = render(30, 0, 2, height=64, width=32).astype(float)
    assert np.abs(small - reduced).mean() < 0.4 * np.abs(small - other).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": NUM_CAMERAS}, "camera must be 0 to"),
        ({"camera": -1}, "camera must be at least 0"),
        ({"identity": -1}, "identity must be at least 0"),
        ({"shot": -2}, "shot must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"height": 31}, "height must be at least 32"),
        ({"width": 8}, "width must be at least 16"),
    ],
)
def test_bad_values_are_named(change, message):
    arguments = {"identity": 0, "camera": 0, "shot": 0, **change}
    with pytest.raises(ValueError, match=message):
        render(**arguments)


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_identity_must_be_an_integer(value):
    with pytest.raises(TypeError, match="identity must be an integer"):
        render(value, 0, 0)


def test_cluster_mates_share_clothes_and_differ_in_detail():
    for cluster in range(60):
        ids = range(cluster * CLUSTER_SIZE, (cluster + 1) * CLUSTER_SIZE)
        people = [appearance_of(i) for i in ids]
        assert {cluster_of(i) for i in ids} == {cluster}
        assert len({(p.upper, p.lower, p.sleeve, p.hem, p.lower_hem) for p in people}) == 1
        builds = [p.build for p in people]
        assert max(builds) / min(builds) < 1.05
        for part in ("upper_colour", "lower_colour", "skin"):
            colours = np.array([getattr(p, part) for p in people])
            assert np.ptp(colours, axis=0).max() < 20
        cloth = {(p.upper_texture.kind, p.upper_texture.period) for p in people}
        assert len(cloth) == CLUSTER_SIZE


def _figures(identities: list[int], camera: int, shots: int) -> np.ndarray:
    """Mean of each identity's middle (where the clothes are) over shots; (N, h, w, 3) float."""
    rows = []
    for identity in identities:
        images = [render(identity, camera, shot) for shot in range(shots)]
        rows.append(np.mean([i[24:110, 20:44] for i in images], axis=0))
    return np.stack(rows)


def test_colours_are_closer_within_a_cluster():
    identities = list(range(10 * CLUSTER_SIZE))
    figures = _figures(identities, camera=0, shots=3)
    upper = figures[:, :30].mean(axis=(1, 2))
    lower = figures[:, 46:].mean(axis=(1, 2))
    colour = np.concatenate([upper, lower], axis=1)
    distance = np.linalg.norm(colour[:, None] - colour[None], axis=2)
    cluster = np.array([cluster_of(i) for i in identities])
    same = cluster[:, None] == cluster[None]
    within = distance[same & ~np.eye(len(identities), dtype=bool)].mean()
    across = distance[~same].mean()
    assert within < 0.6 * across


def _still(identity: int) -> np.ndarray:
    """An identity in one fixed pose, without background, noise, bag or print; (128, 64, 3)."""
    from dataclasses import replace

    from lrreid_ext.data.synth.body import Figure

    looks = replace(
        appearance_of(identity),
        bag="none", print=None, hat="none", scarf=False, yoke=None, side_stripe=None,
        lower_texture=Texture(), build=1.0, hips=1.0,
    )  # fmt: skip
    canvas = Canvas(np.full((256, 128, 3), 128, np.uint8), (-0.4, -0.4, 0.8), 0.65)
    pose = joints(Draws(99), 1.0, 1.0)
    Figure(canvas, View(0.3, 0.15, 224.0, 64.0, 244.0), looks, pose, 0.5).draw()
    return np.asarray(Image.fromarray(np.ascontiguousarray(canvas.image())).reduce(2))


def _reduced(image: np.ndarray, factor: int) -> np.ndarray:
    small = Image.fromarray(image).resize((64 // factor, 128 // factor), Image.Resampling.BICUBIC)
    return np.asarray(small).astype(float)


def test_reduction_takes_the_difference_between_look_alikes():
    """Root mean square differences: mates lose most of theirs at x4, strangers keep theirs."""
    kept = {"mates": [], "strangers": []}
    people = {i: _still(i) for i in range(48)}
    for cluster in range(11):
        for kind, a, b in (
            ("mates", 4 * cluster, 4 * cluster + 1),
            ("mates", 4 * cluster + 2, 4 * cluster + 3),
            ("strangers", 4 * cluster, 4 * cluster + 4),
            ("strangers", 4 * cluster + 2, 4 * cluster + 6),
        ):
            rms = [
                np.sqrt(np.mean((_reduced(people[a], f) - _reduced(people[b], f)) ** 2))
                for f in (1, 4)
            ]
            kept[kind].append(rms[1] / rms[0])
    mates, strangers = np.mean(kept["mates"]), np.mean(kept["strangers"])
    assert mates < 0.5
    assert strangers > 0.65


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_patterns_keep_the_mean_and_repeat(kind):
    _, mean = PATTERNS[kind]
    a = np.arange(0, 2.0, 0.002, dtype=np.float32)[None]
    b = np.arange(0, 2.0, 0.002, dtype=np.float32)[:, None]
    field = weave(Texture(kind, 0.04, (50.0, 50.0, 50.0)), a, b, 400.0)
    assert field is not None
    assert abs(field.mean()) < 0.03
    assert field.min() == pytest.approx(-mean, abs=0.02)
    assert field.max() > 0.3


def test_cloth_turns_with_the_body():
    """A mark on the chest is seen from the front only, on the side that the body turns to."""
    centres = []
    for facing in (0.0, 0.6, np.pi):
        canvas = Canvas(np.zeros((60, 60, 3), np.uint8), (0.0, 0.0, 1.0), 1.0)

        def shader(surface, facing=facing):
            planes = fill(surface.shape, (100, 100, 100))
            planes[0][np.abs(surface.angle(facing)) < 0.2] = 250
            return planes

        canvas.limb(
            (30.0, 10.0), (30.0, 50.0), profile((0.2, 0.2)), shader, length=1.0, scale=100.0
        )
        marked = np.flatnonzero(canvas.image()[30, :, 0] > 200)
        centres.append(marked.mean() if marked.size else None)
    assert centres[0] == pytest.approx(29.5, abs=0.6)
    assert centres[1] == pytest.approx(29.5 + 20 * np.sin(0.6), abs=1.2)
    assert centres[2] is None


def test_bones_keep_their_length_and_feet_the_ground():
    from lrreid_ext.data.synth.pose import FOREARM, SHIN, THIGH, UPPER_ARM

    for stream in range(20):
        points = joints(Draws(5, stream), 1.0, 1.0)
        for side in ("-1", "+1"):
            bones = {("hip", "knee"): THIGH, ("knee", "ankle"): SHIN,
                     ("shoulder", "elbow"): UPPER_ARM, ("elbow", "wrist"): FOREARM}  # fmt: skip
            for (top, bottom), length in bones.items():
                a, b = np.array(points[top + side]), np.array(points[bottom + side])
                assert np.linalg.norm(a - b) == pytest.approx(length, rel=1e-3)
        assert min(p[1] for p in points.values()) >= 0.0
