"""Drawing of one person: body parts from back to front, each with its shader."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lrreid_ext.data.synth.canvas import Canvas, Shader, Surface, blend, fill, profile
from lrreid_ext.data.synth.draws import unit
from lrreid_ext.data.synth.identity import Appearance, Colour
from lrreid_ext.data.synth.pose import FOREARM, HIP, NECK_BASE, SHIN, THIGH, UPPER_ARM, Point, View
from lrreid_ext.data.synth.textures import Texture, noise, print_bitmap, stamp, weave

# Radii that turn an angle into a length on the cloth, body heights.
_TORSO, _LIMB, _LEG = 0.105, 0.036, 0.05
_WAIST = 0.465
_EASE = {"tshirt": 0.004, "shirt": 0.006, "dress": 0.003, "hoodie": 0.012, "coat": 0.013}

Cloth = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _scaled(knots: Sequence[float], factor: float, extra: float = 0.0) -> np.ndarray:
    return profile(tuple(round(k * factor + extra, 5) for k in knots))


def _panel(theta: np.ndarray) -> np.ndarray:
    """Angle from the middle of the front or the back panel; the seams are at the sides."""
    return theta - np.floor(theta * (1.0 / math.pi) + 0.5) * math.pi


def _soft(x: np.ndarray, sharp: float) -> np.ndarray:
    """0 below 0, 1 above, over a width of 1 / sharp."""
    return unit(x * sharp + 0.5)


def _toned(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


class Figure:
    """One person, ready to be drawn.

    Args:
        canvas: where to.
        view: how the camera sees the person.
        looks: the identity's attributes.
        joints: the pose, from :func:`lrreid_ext.data.synth.pose.joints`.
        creases: any number; moves the folds of the cloth.
    """

    def __init__(
        self,
        canvas: Canvas,
        view: View,
        looks: Appearance,
        joints: dict[str, Point],
        creases: float,
    ) -> None:
        self.canvas, self.view, self.looks, self.joints = canvas, view, looks, joints
        self.creases = creases
        self.sharp = view.scale
        # -1 to 1: seen from the back to seen from the front.
        self.frontal = math.cos(view.facing)

    def draw(self) -> None:
        """Draw everything, far parts first."""
        depth = self.view.depth
        legs = sorted((-1, 1), key=lambda s: depth(self.joints[f"ankle{s:+d}"]))
        arms = sorted((-1, 1), key=lambda s: self._arm_depth(s))
        front = self.frontal > 0
        if front:
            self._back_hair()
            self._backpack()
        bag_near = depth((self.looks.bag_side * 0.13, 0.5, 0.0)) > 0
        if not bag_near:
            self._hip_bag()
        for side in arms:
            if self._arm_depth(side) < -0.03:
                self._arm(side)
        for side in legs:
            self._leg(side)
        if self.looks.upper != "dress" and self.looks.lower != "skirt":
            self._pelvis()
        if self.looks.lower == "skirt" and self.looks.upper != "dress":
            self._skirt(0.56, self.looks.lower_hem, self._lower_cloth, 1.12)
        if self.looks.upper == "dress":
            self._skirt(0.56, self.looks.lower_hem, self._upper_cloth, 1.2)
        if self.looks.upper == "coat":
            self._skirt(0.52, self.looks.hem, self._upper_cloth, 1.1)
        self._neck()
        self._torso()
        if not front and self.looks.upper == "hoodie":
            self._hood()
        self._head()
        if self.looks.scarf:
            self._scarf()
        for side in arms:
            if self._arm_depth(side) >= -0.03:
                self._arm(side)
        if not front:
            self._back_hair()
            self._backpack()
        if bag_near:
            self._hip_bag()

    def _arm_depth(self, side: int) -> float:
        depth = self.view.depth
        # From behind, an arm that swings forwards is hidden by the torso and vice versa.
        elbow, hand = self.joints[f"elbow{side:+d}"], self.joints[f"hand{side:+d}"]
        return 0.5 * depth(elbow) + 0.5 * depth(hand)

    # ------------------------------------------------------------------ cloth

    def _cloth(
        self, colour: Colour, texture: Texture, a: np.ndarray, b: np.ndarray, fold: float = 0.17
    ) -> np.ndarray:
        planes = fill(a.shape, colour)
        field = weave(texture, a, b, self.view.scale)
        if field is not None:
            for plane, delta in zip(planes, texture.delta, strict=True):
                plane += field * delta
        planes *= (1.0 - 0.5 * fold) + fold * noise(a + 0.6 * b, 0.7 * b, 0.075, self.creases)
        return planes

    def _upper_cloth(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Cloth of the torso, ``v`` below the base of the neck, with everything sewn to it."""
        looks, sharp = self.looks, self.sharp
        a = _panel(theta) * _TORSO
        planes = self._cloth(looks.upper_colour, looks.upper_texture, a, v)
        around = np.abs(theta)
        # The front panel covers the inner half turn.
        is_front = around < 0.5 * math.pi
        if looks.yoke is not None:
            blend(planes, _soft(0.105 - v, sharp), looks.yoke)
        if looks.print is not None:
            art = looks.print
            columns = 4.2 if art.kind == "band" else 1.0
            mask = stamp(
                print_bitmap(art.kind, art.variant), a, v - 0.135, art.width * columns, art.height
            )
            visible = mask if art.back and art.kind == "band" else mask * (is_front ^ art.back)
            blend(planes, 0.9 * visible, art.colour)
        if looks.front == "open":
            half = 0.035 + 0.12 * np.clip(v, 0.0, 0.5)
            opening = _soft(half - np.abs(a), sharp) * is_front
            blend(planes, 0.35 * _soft(half + 0.012 - np.abs(a), sharp) * is_front, (20, 20, 22))
            blend(planes, opening, self._cloth(looks.inner_colour, looks.inner_texture, a, v))
        elif looks.front == "zip":
            blend(planes, _soft(0.005 - np.abs(a), sharp) * is_front * 0.8, looks.front_colour)
        elif looks.front == "buttons":
            line = _soft(0.002 - np.abs(a - 0.012), sharp) * is_front
            blend(planes, 0.35 * line, (20, 20, 24))
            row = v * (1.0 / looks.buttons)
            away = (row - np.floor(row) - 0.5) * looks.buttons
            spots = _soft(0.0065 - np.sqrt(a * a + away * away), sharp) * is_front
            blend(planes, 0.9 * spots, looks.front_colour)
        if looks.upper == "hoodie":
            pocket = _soft(0.003 - np.abs(np.abs(a) + 0.6 * (v - 0.27) - 0.1), sharp)
            blend(planes, 0.3 * pocket * is_front * (v > 0.25) * (v < 0.34), (20, 20, 24))
        if looks.upper == "tshirt" or looks.upper == "dress":
            neckline = 0.022 - 0.35 * np.abs(a)
            blend(planes, _soft(neckline - v, sharp) * is_front, _toned(looks.skin, 0.92))
        elif looks.upper == "shirt" or looks.upper == "coat":
            collar = np.abs(v - 0.012 - 0.5 * np.abs(a))
            blend(planes, 0.4 * _soft(0.003 - collar, sharp) * (around < 1.1), (24, 24, 28))
        return planes

    def _lower_cloth(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        looks = self.looks
        return self._cloth(looks.lower_colour, looks.lower_texture, _panel(theta) * 0.09, v)

    # ------------------------------------------------------------------ parts

    def _leg(self, side: int) -> None:
        looks, view = self.looks, self.view
        wide = 0.25 + 0.75 * looks.build
        hip, knee, ankle, toe = (
            self.joints[f"{name}{side:+d}"] for name in ("hip", "knee", "ankle", "toe")
        )
        self._shoe(ankle, toe)
        covered = looks.lower in ("trousers", "jeans") and looks.upper != "dress"
        ends = HIP - looks.lower_hem if looks.lower == "shorts" and looks.upper != "dress" else 9.0
        slim = looks.lower == "jeans"
        if covered:
            thigh = (0.058, 0.056, 0.052, 0.046, 0.041 if slim else 0.044)
            shin = (
                (0.041, 0.041, 0.037, 0.031, 0.029) if slim else (0.044, 0.044, 0.042, 0.04, 0.039)
            )
        else:
            thigh, shin = (0.054, 0.051, 0.046, 0.04, 0.036), (0.036, 0.039, 0.035, 0.026, 0.021)

        def cloth(offset: float) -> Shader:
            def shade(surface: Surface) -> np.ndarray:
                theta = surface.angle(view.facing)
                v = surface.v + offset
                if not covered and ends > 1.0:
                    return fill(surface.shape, looks.legs)
                a = _panel(theta) * _LEG
                planes = self._cloth(looks.lower_colour, looks.lower_texture, a, v, 0.22)
                if looks.lower == "jeans":
                    fade = 0.16 * _soft(0.9 - np.abs(theta), 1.2) * _soft(v - 0.05, 6.0)
                    blend(planes, fade, _toned(looks.lower_colour, 1.5))
                if looks.side_stripe is not None:
                    away = np.abs(theta - side * 0.5 * math.pi) * _LEG
                    self._stripes(planes, away, looks.side_stripe)
                if covered and offset:
                    near_hem = _soft(v - 0.445, 60.0)
                    blend(planes, 0.25 * near_hem, (30, 30, 34))
                if not covered:
                    blend(planes, 0.3 * _soft(v - ends + 0.015, self.sharp), (24, 24, 28))
                    blend(planes, _soft(v - ends, self.sharp), looks.skin)
                return planes

            return shade

        top, middle, bottom = view.project(hip), view.project(knee), view.project(ankle)
        if covered:
            bottom = view.project((ankle[0], ankle[1] - 0.012, ankle[2] - 0.004))
        loose = 0.012 if ends < 1.0 else 0.0
        self.canvas.limb(
            middle, bottom, _scaled(shin, wide), cloth(THIGH), length=SHIN, scale=view.scale,
            caps=(0.03, 0.006), shadow=0.12,
        )  # fmt: skip
        knots = (
            thigh
            if not loose
            else tuple(
                r + (0.009 if i / 4 * THIGH < ends - 0.01 else 0.0) for i, r in enumerate(thigh)
            )
        )
        self.canvas.limb(
            top, middle, _scaled(knots, wide), cloth(0.0), length=THIGH, scale=view.scale,
            caps=(0.04, 0.03),
        )  # fmt: skip

    def _stripes(self, planes: np.ndarray, away: np.ndarray, colour: Colour) -> None:
        """Stripes down the outer seam of the trousers; ``away`` is the distance from it."""
        count = self.looks.stripe_count
        if count == 2:
            mask = _soft(0.006 - np.abs(away - 0.014), self.sharp)
        elif count == 3:
            mask = _soft(0.006 - away, self.sharp) + _soft(0.005 - np.abs(away - 0.022), self.sharp)
        else:
            mask = _soft(0.017 - away, self.sharp)
        blend(planes, 0.9 * mask, colour)

    def _shoe(self, ankle: Point, toe: Point) -> None:
        view, looks = self.view, self.looks
        start = view.project((ankle[0], ankle[1] - 0.022, ankle[2] - 0.022))
        end = view.project((toe[0], toe[1] + 0.004, toe[2]))
        # A limb's u grows to the left of its direction, so the sole's side depends on it.
        under = 1.0 if end[0] < start[0] else -1.0
        level = min(1.0, abs(end[0] - start[0]) / (0.04 * view.scale))

        def shade(surface: Surface) -> np.ndarray:
            planes = fill(surface.shape, looks.shoes)
            blend(planes, level * _soft(surface.u * under - 0.5, 6.0), looks.soles)
            return planes

        self.canvas.limb(
            start, end, profile((0.022, 0.025, 0.022, 0.017)), shade, length=0.1,
            scale=view.scale, caps=(0.018, 0.018), gloss=0.8,
        )  # fmt: skip
        if looks.lower in ("trousers", "jeans") and looks.upper != "dress":
            return
        collar = view.project((ankle[0], ankle[1] + 0.012, ankle[2]))
        self.canvas.limb(
            collar, view.project((ankle[0], ankle[1] - 0.02, ankle[2])),
            profile((0.021, 0.023)), lambda surface: fill(surface.shape, looks.shoes),
            length=0.03, scale=view.scale, caps=(0.0, 0.01), gloss=0.8,
        )  # fmt: skip

    def _pelvis(self) -> None:
        looks, view = self.looks, self.view
        wide = view.across(0.1 * looks.build * looks.hips, 0.078 * looks.build)
        self.canvas.limb(
            view.project((0.0, 0.57, 0.0)), view.project((0.0, 0.462, 0.0)),
            _scaled((0.9, 0.97, 1.0, 0.93, 0.75), wide),
            lambda s: self._lower_cloth(s.angle(view.facing), s.v - 0.065),
            length=0.108, scale=view.scale, caps=(0.0, 0.03),
        )  # fmt: skip

    def _skirt(self, top: float, hem: float, cloth: Cloth, flare: float) -> None:
        looks, view = self.looks, self.view
        wide = view.across(0.1 * looks.build * looks.hips, 0.082 * looks.build)
        stride = abs(self.joints["knee+1"][2] - self.joints["knee-1"][2])
        # A stride opens the hem, as far as it is seen from the side.
        opened = stride * 0.22 * abs(math.sin(view.facing)) * max(0.0, 0.55 - hem) / 0.25
        last = round(wide * flare + opened, 4)
        offset = NECK_BASE - top if looks.upper in ("dress", "coat") else top - 0.56

        def shade(surface: Surface) -> np.ndarray:
            planes = cloth(surface.angle(view.facing), surface.v + offset)
            blend(planes, 0.35 * _soft(surface.v - (top - hem) + 0.012, 60.0), (24, 24, 28))
            return planes

        self.canvas.limb(
            view.project((0.0, top, 0.0)), view.project((0.0, hem, 0.0)),
            _scaled((wide * 0.94, wide * 1.03, (wide + last) / 2, last), 1.0),
            shade, length=top - hem, scale=view.scale,
            bow=0.35 * math.sin(view.tilt) * 0.1 + 0.006, shadow=0.2,
        )  # fmt: skip

    def _torso(self) -> None:
        looks, view = self.looks, self.view
        ease = _EASE.get(looks.upper, 0.011)
        b, h = looks.build, looks.hips
        wide = (
            0.042,
            0.094,
            0.113,
            0.116,
            0.114,
            0.107 * b,
            0.099 * b,
            0.099 * b * h,
            0.103 * b * h,
        )
        deep = (0.04, 0.052, 0.066, 0.078, 0.081, 0.076 * b, 0.072 * b, 0.074 * b, 0.08 * b)
        girth = 0.3 + 0.7 * b
        radii = tuple(
            round(view.across(w * girth if i < 5 else w, d * girth) + ease * min(1.0, i / 2), 4)
            for i, (w, d) in enumerate(zip(wide, deep, strict=True))
        )
        hem = max(looks.hem, _WAIST) if looks.upper in ("coat", "dress") else looks.hem
        length = NECK_BASE - hem
        long = looks.upper in ("coat", "dress")

        def shade(surface: Surface) -> np.ndarray:
            theta = surface.angle(view.facing)
            planes = self._upper_cloth(theta, surface.v)
            if not long:
                blend(planes, 0.3 * _soft(surface.v - length + 0.012, 90.0), (24, 24, 28))
            self._straps(planes, surface, theta)
            return planes

        self.canvas.limb(
            view.project((0.0, NECK_BASE, -0.008)), view.project((0.0, hem, 0.0)), profile(radii),
            shade, length=length, scale=view.scale, caps=(0.012, 0.02 if long else 0.0),
            bow=0.0 if long else 0.012, shadow=0.0 if long else 0.22,
        )  # fmt: skip

    def _straps(self, planes: np.ndarray, surface: Surface, theta: np.ndarray) -> None:
        looks, v = self.looks, surface.v
        colour = _toned(looks.bag_colour, 0.9)
        if looks.bag == "backpack":
            away = np.abs(np.abs(theta) - 0.62) * _TORSO
            blend(planes, _soft(0.013 - away, self.sharp) * _soft(0.24 - v, self.sharp), colour)
        elif looks.bag == "shoulder_bag":
            sine, cosine = math.sin(self.view.facing), math.cos(self.view.facing)
            x = surface.u * cosine - np.sqrt(1.0 - surface.u * surface.u) * sine
            away = np.abs(x * looks.bag_side - (-0.42 + 3.6 * v)) * 0.1
            blend(planes, _soft(0.0095 - away, self.sharp), colour)

    def _arm(self, side: int) -> None:
        looks, view = self.looks, self.view
        shoulder, elbow, wrist, hand = (
            self.joints[f"{name}{side:+d}"] for name in ("shoulder", "elbow", "wrist", "hand")
        )
        girth = 0.35 + 0.65 * looks.build
        ease = _EASE.get(looks.upper, 0.01)
        reach = looks.sleeve * (UPPER_ARM + FOREARM)
        bare = (0.025, 0.03, 0.028, 0.026, 0.024), (0.025, 0.025, 0.022, 0.019, 0.016)

        def radii(part: int) -> np.ndarray:
            starts, length = (0.0, UPPER_ARM) if part == 0 else (UPPER_ARM, FOREARM)
            loose = 0.002 if looks.upper == "tshirt" else 0.001
            knots = []
            for i, radius in enumerate(bare[part]):
                covered = starts + i / 4 * length <= reach
                extra = ease * 0.55 + loose * i if covered else 0.0
                knots.append(round(radius * girth + extra, 5))
            return profile(tuple(knots))

        def shade(offset: float) -> Shader:
            def inner(surface: Surface) -> np.ndarray:
                v = surface.v + offset
                theta = surface.angle(view.facing)
                a = _panel(theta) * _LIMB
                planes = self._cloth(looks.upper_colour, looks.upper_texture, a, v + 0.03, 0.2)
                if looks.sleeve < 0.9:
                    blend(planes, 0.3 * _soft(v - reach + 0.008, self.sharp), (24, 24, 28))
                    blend(planes, _soft(v - reach, self.sharp), looks.skin)
                elif offset:
                    blend(planes, 0.3 * _soft(v - 0.264, 80.0), (24, 24, 28))
                return planes

            return inner

        def skin(surface: Surface) -> np.ndarray:
            return fill(surface.shape, _toned(looks.skin, 0.96))

        joint = [view.project(p) for p in (shoulder, elbow, wrist, hand)]

        def upper_part() -> None:
            self.canvas.limb(
                joint[0], joint[1], radii(0), shade(0.0), length=UPPER_ARM, scale=view.scale,
                caps=(0.02, 0.022), shadow=0.2, gloss=0.75,
            )  # fmt: skip

        # A forearm that is raised towards the camera lies before the upper arm.
        raised = view.depth(wrist) > view.depth(elbow) + 0.05
        if raised:
            upper_part()
        self.canvas.limb(
            joint[2], joint[3], profile((0.015, 0.018, 0.017, 0.012)), skin, length=0.055,
            scale=view.scale, caps=(0.01, 0.01),
        )  # fmt: skip
        if looks.bag == "handbag" and side == looks.bag_side:
            self._handbag(joint[3])
        self.canvas.limb(
            joint[1], joint[2], radii(1), shade(UPPER_ARM), length=FOREARM, scale=view.scale,
            caps=(0.022, 0.004), shadow=0.14, gloss=0.75,
        )  # fmt: skip
        if not raised:
            upper_part()

    def _neck(self) -> None:
        view = self.view
        self.canvas.limb(
            view.project((0.0, 0.89, 0.006)), view.project((0.0, 0.815, -0.008)),
            profile((0.029, 0.029, 0.034)),
            lambda s: fill(s.shape, _toned(self.looks.skin, 0.86)), length=0.07, scale=view.scale,
        )  # fmt: skip

    def _head(self) -> None:
        looks, view = self.looks, self.view
        sine, cosine = math.sin(view.facing), math.cos(view.facing)
        tip, lift = math.sin(view.tilt), math.cos(view.tilt)
        bulk = {"curly": 1.16, "bald": 0.97, "short": 1.04}.get(looks.hair, 1.08)

        def shade(right: np.ndarray, up: np.ndarray, towards: np.ndarray) -> np.ndarray:
            y = up * lift + towards * tip
            near = towards * lift - up * tip
            x = right * cosine - near * sine
            z = right * sine + near * cosine
            planes = fill(right.shape, looks.skin)
            face = unit(z * 4.0 - 0.6)
            aside = np.abs(x)
            eyes = _soft(0.17 - np.abs(aside - 0.38), 6.0) * _soft(0.08 - np.abs(y - 0.06), 8.0)
            brow = _soft(0.26 - np.abs(aside - 0.38), 6.0) * _soft(0.05 - np.abs(y - 0.24), 8.0)
            blend(planes, 0.75 * face * eyes, (44, 34, 32))
            blend(planes, 0.5 * face * brow, looks.hair_colour)
            nose = _soft(0.1 - aside, 6.0) * _soft(0.08 - np.abs(y + 0.28), 7.0)
            blend(planes, 0.3 * face * nose, _toned(looks.skin, 0.55))
            mouth = _soft(0.25 - aside, 6.0) * _soft(0.05 - np.abs(y + 0.56), 8.0)
            blend(planes, 0.55 * face * mouth, (126, 66, 62))
            if looks.beard:
                jaw = _soft(-0.38 - y, 5.0) * _soft(z + 0.1, 4.0)
                blend(planes, 0.7 * jaw, looks.hair_colour)
            if looks.glasses:
                frame = _soft(0.6 - np.abs(aside - 0.1), 6.0) * _soft(0.16 - np.abs(y - 0.06), 9.0)
                blend(planes, 0.6 * face * frame, (26, 26, 30))
            if looks.hair != "bald":
                line = -0.16 + 0.66 * z if looks.hair in ("short", "curly") else -0.34 + 0.86 * z
                locks = noise(x * 0.08, y * 0.03 + z * 0.03, 0.02, 0.21)
                strands = 0.75 + 0.5 * locks
                mask = _soft(y - line - 0.3 * locks + 0.12, 5.0)
                blend(planes, mask, fill(right.shape, looks.hair_colour) * strands)
            else:
                fringe = _soft(0.1 - z, 5.0) * _soft(0.25 - np.abs(y), 5.0)
                blend(planes, 0.6 * fringe, looks.hair_colour)
            if looks.hat != "none":
                edge = y - (0.3 + 0.12 * z if looks.hat == "cap" else 0.24)
                cloth = self._cloth(looks.hat_colour, looks.hat_texture, x * 0.06, y * 0.07)
                blend(planes, _soft(edge, 9.0), cloth)
            return planes

        centre = view.project(self.joints["head"])
        half = view.across(0.05, 0.06) * (0.5 + 0.5 * bulk)
        tall = 0.07 * (0.6 + 0.4 * bulk) + (0.004 if looks.hat != "none" else 0.0)
        self.canvas.ellipsoid(
            centre, half * view.scale, tall * view.scale, shade, taper=0.2, shadow=0.16
        )
        if looks.hat == "cap" and self.frontal > -0.5:
            x, y, z = self.joints["head"]
            self.canvas.limb(
                view.project((x, y + 0.03, z + 0.03)), view.project((x, y + 0.018, z + 0.085)),
                profile((round(view.across(0.045, 0.012), 4),) * 2),
                lambda s: fill(s.shape, _toned(looks.hat_colour, 0.8)), length=0.05,
                scale=view.scale, caps=(0.008, 0.012),
            )  # fmt: skip

    def _back_hair(self) -> None:
        looks, view = self.looks, self.view
        lengths = {"long": 0.15, "bob": 0.075, "ponytail": 0.13, "bun": 0.03}
        if looks.hair not in lengths:
            return
        x, y, z = self.joints["head"]

        def strands(surface: Surface) -> np.ndarray:
            tone = 0.78 + 0.44 * noise(surface.u * 0.06, surface.v * 0.25, 0.025, 0.4)
            return fill(surface.shape, looks.hair_colour) * tone

        if looks.hair in ("long", "bob"):
            wide = view.across(0.056, 0.045)
            knots: tuple[float, ...] = (0.75, 1.0, 1.0, 0.92, 0.7)
            start, back = (x, y + 0.025, z - 0.025), -0.045
        elif looks.hair == "ponytail":
            wide, knots, back = 0.019, (0.6, 1.0, 1.0, 0.4), -0.085
            start = (x, y + 0.025, z - 0.058)
        else:
            wide, knots, back = 0.028, (0.7, 1.0, 0.7), -0.075
            start = (x, y + 0.045, z - 0.06)
        end = (x, start[1] - lengths[looks.hair], back)
        self.canvas.limb(
            view.project(start), view.project(end), _scaled(knots, round(wide, 4)), strands,
            length=lengths[looks.hair], scale=view.scale, caps=(0.02, 0.02), shadow=0.1,
        )  # fmt: skip

    def _hood(self) -> None:
        view, looks = self.view, self.looks
        self.canvas.limb(
            view.project((0.0, 0.872, -0.05)), view.project((0.0, 0.775, -0.085)),
            profile((0.05, 0.066, 0.058, 0.03)),
            lambda s: self._cloth(looks.upper_colour, looks.upper_texture, s.u * 0.06, s.v),
            length=0.095, scale=view.scale, caps=(0.015, 0.015), shadow=0.2,
        )  # fmt: skip

    def _scarf(self) -> None:
        view, looks = self.view, self.looks

        def shade(surface: Surface) -> np.ndarray:
            return self._cloth(
                looks.scarf_colour, looks.scarf_texture, surface.u * 0.055, surface.v
            )

        self.canvas.limb(
            view.project((0.0, 0.868, 0.0)), view.project((0.0, 0.826, 0.0)),
            profile((0.044, 0.058, 0.06, 0.05)), shade, length=0.042, scale=view.scale,
            caps=(0.012, 0.014), bow=0.01, shadow=0.2,
        )  # fmt: skip
        if self.frontal > -0.2:
            self.canvas.limb(
                view.project((0.02, 0.83, 0.07)), view.project((0.028, 0.68, 0.09)),
                profile((0.02, 0.022, 0.024)), shade, length=0.15, scale=view.scale, shadow=0.15,
            )  # fmt: skip

    def _backpack(self) -> None:
        looks, view = self.looks, self.view
        if looks.bag != "backpack":
            return
        wide = view.across(0.088, 0.05)

        def shade(surface: Surface) -> np.ndarray:
            planes = fill(surface.shape, looks.bag_colour)
            planes *= 0.9 + 0.2 * noise(surface.u * 0.08, surface.v, 0.05, self.creases)
            back = -self.frontal > 0.25
            if looks.bag_pocket and back:
                edge = np.maximum(
                    np.abs(surface.u) * 0.09 - 0.06, np.abs(surface.v - 0.145) - 0.045
                )
                blend(planes, 0.6 * _soft(0.0035 - np.abs(edge), self.sharp), (18, 18, 20))
            if looks.bag_pocket == 2 and back:
                band = _soft(0.006 - np.abs(surface.v - 0.06), self.sharp)
                blend(planes, 0.8 * band, (196, 190, 176))
            return planes

        self.canvas.limb(
            view.project((0.0, 0.805, -0.115)), view.project((0.0, 0.6, -0.12)),
            _scaled((0.8, 0.97, 1.0, 1.0, 0.95), round(wide, 4)), shade, length=0.205,
            scale=view.scale, caps=(0.022, 0.018), shadow=0.22,
        )  # fmt: skip

    def _hip_bag(self) -> None:
        looks, view = self.looks, self.view
        if looks.bag != "shoulder_bag":
            return
        side = looks.bag_side * (0.105 + 0.02 * looks.build)
        wide = view.across(0.03, 0.07)

        def shade(surface: Surface) -> np.ndarray:
            planes = fill(surface.shape, looks.bag_colour)
            if looks.bag_pocket:
                blend(
                    planes, 0.5 * _soft(0.004 - np.abs(surface.v - 0.05), self.sharp), (18, 18, 20)
                )
            return planes

        self.canvas.limb(
            view.project((side, 0.535, -0.01)), view.project((side, 0.435, -0.01)),
            _scaled((0.95, 1.0, 1.0), round(wide, 4)), shade, length=0.1, scale=view.scale,
            caps=(0.008, 0.012), shadow=0.25,
        )  # fmt: skip

    def _handbag(self, grip: tuple[float, float]) -> None:
        looks, view = self.looks, self.view
        x, y = grip
        scale = view.scale
        wide = view.across(0.03, 0.065)
        for shift in (-0.5, 0.5):
            self.canvas.limb(
                (x, y - 0.008 * scale), (x + shift * wide * scale, y + 0.045 * scale),
                profile((0.005, 0.005)), lambda s: fill(s.shape, _toned(looks.bag_colour, 0.8)),
                length=0.05, scale=scale,
            )  # fmt: skip
        self.canvas.limb(
            (x, y + 0.045 * scale), (x, y + 0.125 * scale),
            _scaled((0.85, 0.97, 1.0), round(wide, 4)),
            lambda s: fill(s.shape, looks.bag_colour), length=0.08, scale=scale,
            caps=(0.004, 0.01), shadow=0.2,
        )  # fmt: skip
