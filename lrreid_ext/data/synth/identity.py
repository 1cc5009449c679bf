"""Who the people are: attributes of an identity, and clusters of look-alikes.

Identities ``4 k .. 4 k + 3`` form cluster ``k``: they share the type and colours of their clothes,
and roughly their build, skin and hair. What tells them apart is fine: the pattern and its period, a
print, stripes on trousers, straps, buttons, shoes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lrreid_ext.data.synth.draws import Draws
from lrreid_ext.data.synth.textures import PATTERNS, Texture

CLUSTER_SIZE = 4
Colour = tuple[float, float, float]

UPPER_TYPES = ("tshirt", "shirt", "jacket", "open_jacket", "coat", "hoodie", "dress")
WOMENS_HAIR = ("long", "long", "ponytail", "bun", "bob")
MENS_HAIR = ("short", "short", "short", "short", "curly", "bald")
LOWER_TYPES = ("trousers", "jeans", "shorts", "skirt")

# Muted on purpose: colours alone must leave many people alike.
UPPER_COLOURS: tuple[Colour, ...] = (
    (52, 52, 56), (74, 76, 82), (118, 120, 122), (164, 164, 160), (196, 193, 186), (54, 61, 82),
    (84, 104, 134), (136, 156, 178), (94, 96, 72), (168, 150, 122), (104, 82, 66), (108, 62, 66),
    (178, 134, 134), (66, 84, 76), (166, 134, 78),
)  # fmt: skip
LOWER_COLOURS: tuple[Colour, ...] = (
    (46, 46, 50), (66, 68, 74), (52, 58, 76), (104, 106, 108), (150, 136, 112), (92, 78, 66),
)  # fmt: skip
JEANS_COLOURS: tuple[Colour, ...] = ((56, 65, 86), (80, 95, 120), (118, 132, 152))
SKIN_TONES: tuple[Colour, ...] = (
    (224, 186, 162), (212, 170, 142), (190, 146, 116), (156, 112, 84), (116, 80, 60), (88, 60, 46),
)  # fmt: skip
HAIR_COLOURS: tuple[Colour, ...] = (
    (42, 38, 37), (54, 44, 39), (74, 57, 46), (96, 72, 50), (150, 120, 82), (136, 134, 132),
)  # fmt: skip
SHOE_COLOURS: tuple[Colour, ...] = (
    (40, 38, 38), (206, 204, 200), (98, 74, 56), (92, 94, 100), (54, 62, 86), (140, 62, 58),
)  # fmt: skip
BAG_COLOURS: tuple[Colour, ...] = (
    (44, 44, 48), (84, 70, 58), (58, 66, 90), (112, 60, 58), (150, 128, 96), (98, 102, 104),
)  # fmt: skip
STRIPE_COLOURS: tuple[Colour, ...] = ((200, 198, 192), (150, 60, 58), (170, 150, 90))
LIGHT_INKS: tuple[Colour, ...] = ((222, 220, 212), (196, 170, 96), (190, 100, 90))
DARK_INKS: tuple[Colour, ...] = ((44, 44, 50), (60, 70, 110), (130, 48, 52))
_TINTS: tuple[Colour, ...] = (
    (1.0, 1.0, 0.96), (1.0, 1.0, 1.0), (1.0, 0.86, 0.68), (0.72, 0.86, 1.0), (1.0, 0.76, 0.7),
)  # fmt: skip


@dataclass(frozen=True)
class Print:
    """A print on the chest or the back: kind and variant as in ``textures.print_bitmap``."""

    kind: str
    variant: int
    colour: Colour
    width: float
    height: float
    back: bool


@dataclass(frozen=True)
class Appearance:
    """Everything that stays the same about a person. Colours are RGB, 0-255; lengths, body heights.

    Attributes:
        build: factor on all widths; about 0.86 (slim) to 1.2 (stout).
        hips: factor on the width of the hips, against the shoulders'.
        stature: factor on the drawn height.
        sleeve: share of the arm that the sleeve covers, 0-1.
        hem: height of the upper garment's lower edge above the ground.
        lower_hem: height of the lower garment's edge (shorts, skirt, dress) above the ground.
        front: what is seen down the front of the upper garment: ``none``, ``buttons``, ``zip``,
            ``open``.
    """

    upper: str
    lower: str
    upper_colour: Colour
    lower_colour: Colour
    inner_colour: Colour
    build: float
    hips: float
    stature: float
    sleeve: float
    hem: float
    lower_hem: float
    skin: Colour
    hair_colour: Colour
    hair: str
    beard: bool
    glasses: bool
    legs: Colour
    upper_texture: Texture
    inner_texture: Texture
    lower_texture: Texture
    front: str
    front_colour: Colour
    buttons: float
    yoke: Colour | None
    side_stripe: Colour | None
    stripe_count: int
    print: Print | None
    bag: str
    bag_colour: Colour
    bag_pocket: int
    bag_side: int
    hat: str
    hat_colour: Colour
    hat_texture: Texture
    scarf: bool
    scarf_colour: Colour
    scarf_texture: Texture
    shoes: Colour
    soles: Colour


def _luma(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def _vary(draws: Draws, colour: Colour, amount: float) -> Colour:
    common = draws.uniform(-amount, amount)
    red, green, blue = (
        min(245.0, max(8.0, c + common + draws.uniform(-amount, amount) * 0.4)) for c in colour
    )
    return red, green, blue


def _contrast(colour: Colour, tint: Colour, amount: float, mean: float = 0.5) -> Colour:
    """The largest difference of two tones, up to ``amount``, that stays in range."""
    sign = 1.0 if _luma(colour) < 128 else -1.0
    for c, t in zip(colour, tint, strict=True):
        above, below = ((1 - mean), mean) if sign > 0 else (mean, (1 - mean))
        amount = min(amount, (250.0 - c) / (above * t), (c - 4.0) / (below * t))
    red, green, blue = (sign * amount * t for t in tint)
    return red, green, blue


def _textured(draws: Draws, kind: str, period: float, colour: Colour, tint: Colour) -> Texture:
    mean = PATTERNS[kind][1]
    return Texture(kind, period, _contrast(colour, tint, draws.uniform(66, 104), mean))


def cluster_of(identity: int) -> int:
    """The cluster of look-alikes that an identity belongs to."""
    return identity // CLUSTER_SIZE


def _lower_texture(own: Draws, lower: str, colour: Colour, tint: Colour) -> Texture:
    if lower == "jeans":
        return Texture("blotches", 0.02, _contrast(colour, (1.0, 1.0, 1.0), 9.0))
    if not own.chance(0.3):
        return Texture()
    kind = own.pick(("vstripes", "check", "grid", "hstripes", "dots"))
    delta = _contrast(colour, tint, own.uniform(36, 64), PATTERNS[kind][1])
    return Texture(kind, own.uniform(0.02, 0.04), delta)


def _print(own: Draws, cloth: Colour) -> Print:
    kind = own.pick(("number", "emblem", "text", "band"))
    width = own.uniform(0.07, 0.1)
    height = {"number": 0.075, "emblem": width, "text": 0.05, "band": 0.06}[kind]
    ink = own.pick(LIGHT_INKS if _luma(cloth) < 120 else DARK_INKS)
    return Print(kind, int(own.uniform(0, 400)), ink, width, height, own.chance(0.5))


@lru_cache(maxsize=4096)
def appearance_of(identity: int, seed: int = 0) -> Appearance:
    """The attributes of an identity.

    Args:
        identity: an integer >= 0.
        seed: an integer >= 0; another seed gives other people.
    """
    cluster, member = divmod(identity, CLUSTER_SIZE)
    shared = Draws(1, seed, cluster)
    own = Draws(2, seed, cluster, member)

    upper = shared.pick((*UPPER_TYPES[:6], *UPPER_TYPES))
    lower = shared.pick(("trousers", "trousers", "jeans", "jeans", "shorts", "skirt"))
    if upper == "coat" and lower == "shorts":
        lower = "trousers"
    upper_colour = shared.pick(UPPER_COLOURS)
    lower_colour = shared.pick(JEANS_COLOURS if lower == "jeans" else LOWER_COLOURS)
    inner_colour = shared.pick(UPPER_COLOURS[2:8])
    skin = shared.pick(SKIN_TONES)
    hair_colour = shared.pick(HAIR_COLOURS[:4] if _luma(skin) < 140 else HAIR_COLOURS)
    womanly = upper == "dress" or lower == "skirt" or shared.chance(0.42)
    build = shared.uniform(0.88, 1.16)
    stature = shared.uniform(0.96, 1.03)
    sleeve = {"tshirt": 0.3, "dress": shared.pick((0.12, 0.3, 0.95))}.get(upper, 0.97)
    sleeve = 0.62 if upper == "shirt" and shared.chance(0.25) else sleeve
    hem = {"coat": shared.uniform(0.3, 0.4), "dress": 0.5}.get(upper, shared.uniform(0.455, 0.485))
    lower_hem = shared.uniform(0.28, 0.34) if lower == "shorts" else shared.uniform(0.24, 0.36)
    bare = shared.chance(0.55)
    hair = shared.pick(WOMENS_HAIR if womanly else MENS_HAIR)
    shoes = shared.pick(SHOE_COLOURS)
    tint = shared.pick(_TINTS)

    # Two patterns in two periods: members differ by the pattern, by the period alone, or both.
    first, second = shared.order(tuple(PATTERNS))[:2]
    fine, coarse = shared.uniform(0.018, 0.025), shared.uniform(0.031, 0.044)
    looks = shared.order(((first, fine), (first, coarse), (second, fine), (second, coarse)))
    kind, period = looks[member]
    upper_texture = _textured(shared, kind, period, upper_colour, tint)
    inner_texture = _textured(shared, kind, period, inner_colour, tint)
    if upper in ("jacket", "coat") and shared.chance(0.4):
        red, green, blue = upper_texture.delta
        upper_texture = Texture(kind, period, (0.6 * red, 0.6 * green, 0.6 * blue))
    plain_member = shared.pick((0, 1, 2, 3))
    if member == plain_member and shared.chance(0.5):
        upper_texture = Texture()

    lower_texture = _lower_texture(own, lower, lower_colour, tint)
    side_stripe, stripe_count = None, 0
    if lower == "trousers" and own.chance(0.25):
        side_stripe, stripe_count = own.pick(STRIPE_COLOURS), own.pick((1, 2, 3))
    picture = None
    if upper != "open_jacket" and own.chance(0.45):
        picture = _print(own, upper_colour)

    front = {
        "shirt": "buttons", "jacket": "zip", "open_jacket": "open", "coat": "buttons",
        "hoodie": own.pick(("none", "none", "zip")), "dress": "none", "tshirt": "none",
    }[upper]  # fmt: skip
    bright = _luma(upper_colour) < 110
    front_colour = own.pick(
        ((190, 188, 182), (150, 130, 90)) if bright else ((60, 58, 58), (110, 84, 60))
    )
    yoke = _vary(own, own.pick(UPPER_COLOURS), 6.0) if own.chance(0.05) else None

    bags = ("none", "none", "backpack", "shoulder_bag", "handbag")
    bag, bag_side, bag_colour = shared.pick(bags), shared.pick((-1, 1)), shared.pick(BAG_COLOURS)
    bag = own.pick(bags) if own.chance(0.15) else bag
    bag_colour = own.pick(BAG_COLOURS) if own.chance(0.25) else bag_colour
    hat = own.pick(("cap", "beanie")) if own.chance(0.06) else "none"
    scarf = upper in ("coat", "jacket", "open_jacket", "hoodie") and own.chance(0.1)
    scarf_colour = own.pick(UPPER_COLOURS)
    if own.chance(0.12):
        shoes = own.pick(SHOE_COLOURS)
    if womanly and own.chance(0.1):
        hair = own.pick(WOMENS_HAIR)

    return Appearance(
        upper=upper, lower=lower,
        upper_colour=_vary(own, upper_colour, 4.0), lower_colour=_vary(own, lower_colour, 4.0),
        inner_colour=inner_colour,
        build=build * own.uniform(0.98, 1.02), hips=1.07 if womanly else 0.98,
        stature=stature * own.uniform(0.99, 1.01),
        sleeve=sleeve, hem=hem, lower_hem=lower_hem,
        skin=_vary(own, skin, 5.0), hair_colour=_vary(own, hair_colour, 5.0), hair=hair,
        beard=not womanly and own.chance(0.3), glasses=own.chance(0.2),
        legs=skin if bare else (56, 52, 54),
        upper_texture=upper_texture, inner_texture=inner_texture, lower_texture=lower_texture,
        front=front, front_colour=front_colour, buttons=own.uniform(0.035, 0.06),
        yoke=yoke, side_stripe=side_stripe, stripe_count=stripe_count, print=picture,
        bag=bag, bag_colour=bag_colour, bag_pocket=own.pick((0, 1, 2)), bag_side=bag_side,
        hat=hat, hat_colour=own.pick(UPPER_COLOURS),
        hat_texture=own.pick((Texture(), Texture("hstripes", 0.024, (40.0, 40.0, 40.0)))),
        scarf=scarf, scarf_colour=scarf_colour,
        scarf_texture=Texture(
            own.pick(("hstripes", "check", "diagonal")), own.uniform(0.02, 0.035),
            _contrast(scarf_colour, (1.0, 1.0, 1.0), 80.0),
        ),
        shoes=shoes, soles=own.pick(((214, 212, 206), (50, 48, 48), (170, 150, 120))),
    )  # fmt: skip
