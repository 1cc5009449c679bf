"""Write a sheet of synthetic pedestrians: look-alikes in neighbouring rows, HR and degraded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrreid_ext.data.synth import CLUSTER_SIZE, NUM_CAMERAS, render
from lrreid_ext.files import atomic

GAP, BLOCK_GAP, CAPTION, MARGIN = 3, 14, 14, 46
PAPER, INK, FAINT = (250, 250, 248), (40, 40, 44), (200, 200, 198)


def low_resolution(image: np.ndarray, factor: float) -> Image.Image:
    """The image reduced by ``factor`` and enlarged again, both bicubic, so that sizes agree.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: >= 1; 1 leaves the image as it is.
    """
    picture = Image.fromarray(image)
    if factor == 1:
        return picture
    width, height = picture.size
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return picture.resize(small, Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def contact_sheet(
    identities: int,
    cameras: int,
    factors: list[float],
    *,
    shots: int = 2,
    first: int = 0,
    height: int = 128,
    seed: int = 0,
) -> Image.Image:
    """A sheet with one row per identity and one block of columns per factor.

    Args:
        identities: number of rows.
        cameras: cameras shown, from 0.
        factors: a block each; numbers >= 1.
        shots: images per camera.
        first: first identity.
        height: image height, pixels; the width is half of it.
        seed: the world, as in :func:`lrreid_ext.data.synth.render`.
    """
    width = height // 2
    per_block = cameras * shots
    block = per_block * (width + GAP) - GAP
    size = (
        MARGIN + len(factors) * (block + BLOCK_GAP),
        2 * CAPTION + identities * (height + GAP) + (identities - 1) // CLUSTER_SIZE * 6 + GAP,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for index, factor in enumerate(factors):
        left = MARGIN + index * (block + BLOCK_GAP)
        draw.text((left, 1), "HR" if factor == 1 else f"x{factor:g}", INK, font)
        for camera in range(cameras):
            at = left + camera * shots * (width + GAP)
            draw.text((at, CAPTION), f"camera {camera}", INK, font)
    top = 2 * CAPTION
    for row in range(identities):
        identity = first + row
        if row and identity % CLUSTER_SIZE == 0:
            draw.line((2, top + 1, size[0] - BLOCK_GAP, top + 1), FAINT)
            top += 6
        draw.text((4, top + height // 2 - 6), f"id {identity}", INK, font)
        for camera in range(cameras):
            for shot in range(shots):
                image = render(identity, camera, shot, seed=seed, height=height, width=width)
                for index, factor in enumerate(factors):
                    left = MARGIN + index * (block + BLOCK_GAP)
                    column = (camera * shots + shot) * (width + GAP)
                    sheet.paste(low_resolution(image, factor), (left + column, top))
        top += height + GAP
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    with atomic(path) as temporary:
        sheet.save(temporary)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, help="picture to write, .png or .jpg")
    p.add_argument("--identities", type=int, default=12, help="rows")
    p.add_argument("--first", type=int, default=0, help="first identity")
    p.add_argument("--cameras", type=int, default=3, help=f"1 to {NUM_CAMERAS}")
    p.add_argument("--shots", type=int, default=2, help="images per camera")
    p.add_argument("--factors", type=float, nargs="+", default=[1, 4], help="a block each")
    p.add_argument("--height", type=int, default=128, help="image height; the width is half of it")
    p.add_argument("--seed", type=int, default=0, help="another seed gives other people")
    return p


def main(argv: list[str] | None = None) -> int:
    """Write the sheet; the exit status."""
    cli = parser()
    args = cli.parse_args(argv)
    if args.identities < 1 or args.shots < 1:
        cli.error("--identities and --shots must be at least 1")
    if not 1 <= args.cameras <= NUM_CAMERAS:
        cli.error(f"--cameras must be 1 to {NUM_CAMERAS}")
    if min(args.factors) < 1:
        cli.error("--factors must be at least 1")
    try:
        sheet = contact_sheet(
            args.identities, args.cameras, args.factors, shots=args.shots, first=args.first,
            height=args.height, seed=args.seed,
        )  # fmt: skip
    except ValueError as error:
        cli.error(str(error))
    _save(sheet, args.out)
    print(f"{args.out}: {sheet.width} x {sheet.height}, identities {args.first} to "
          f"{args.first + args.identities - 1}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
