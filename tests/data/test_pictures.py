"""Images of any kind become RGB with the levels that a viewer shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lrreid_ext.data.pictures import pictures, read_picture
from lrreid_ext.errors import ImageError

LEVELS = np.linspace(0, 255, 24 * 9).astype(np.uint8).reshape(24, 9)
GREY = Image.fromarray(LEVELS)


def shown(image):
    return np.asarray(image)[..., 0].astype(int)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_a_picture_is_read_as_rgb(mode, tmp_path):
    file = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    GREY.convert(mode).save(file)
    read = read_picture(file)
    assert read.mode == "RGB" and read.size == GREY.size
    assert np.abs(shown(read) - LEVELS).max() <= 1


@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
def test_sixteen_bits_become_eight(name, tmp_path):
    Image.fromarray(LEVELS.astype(np.uint16) * 257).save(tmp_path / name)
    assert (shown(read_picture(tmp_path / name)) == LEVELS).all()


def test_sixteen_bits_as_older_pillows_open_them():
    image = Image.fromarray(LEVELS.astype(np.int32) * 257)
    image.format = "PNG"
    assert (shown(pictures(image)[0]()) == LEVELS).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(kind, tmp_path):
    Image.fromarray(LEVELS.astype(kind)).save(tmp_path / "picture.tif")
    with pytest.raises(ImageError, match=r"picture\.tif: .* 8 or 16 a channel"):
        read_picture(tmp_path / "picture.tif")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_picture_is_turned_upright(bits, tmp_path):
    image = GREY if bits == 8 else Image.fromarray(LEVELS.astype(np.uint16) * 257)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right-hand side
    image.save(tmp_path / "picture.png", exif=exif)
    assert (shown(read_picture(tmp_path / "picture.png")) == np.rot90(LEVELS, -1)).all()


@pytest.mark.parametrize("kept", [0, 20, 60])
def test_a_damaged_file_is_named(kept, tmp_path):
    GREY.save(tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    (tmp_path / "picture.png").write_bytes(data[:kept])
    with pytest.raises(ImageError, match=r"picture\.png: can't be read as an image"):
        read_picture(tmp_path / "picture.png")
