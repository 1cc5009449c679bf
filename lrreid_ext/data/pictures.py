"""Images as a program has them (files, PIL, arrays, tensors), one by one as PIL pictures in RGB."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lrreid_ext.errors import ImageError

__all__ = ["Images", "Picture", "pictures", "read_picture"]

Picture = Callable[[], Image.Image]
Images: TypeAlias = (
    str
    | os.PathLike[str]
    | Image.Image
    | NDArray[np.uint8]
    | Tensor
    | Sequence["str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor"]
)


def pictures(images: Images) -> list[Picture]:
    """Each image as a function that gives it, so that files needn't be held all at once.

    Args:
        images: the path of a file; a PIL image of any mode; an array (H, W, 3) or (B, H, W, 3),
            RGB, uint8; a tensor (3, H, W) or (B, 3, H, W), RGB, uint8 or floats from 0 to 255
            (rounded to whole levels, as files hold them); or a list of those.

    Returns:
        Functions without arguments. Each gives a PIL image in mode RGB, turned upright where EXIF
        says so, or raises :class:`~lrreid_ext.errors.ImageError` for a file that can't be read.

    Raises:
        ImageError: values of another shape, type or range, or no images; says which image.
    """
    if isinstance(images, Sequence) and not isinstance(images, str):
        readers = [p for k, image in enumerate(images) for p in _given(image, f"image {k}: ")]
    else:
        readers = _given(images, "")
    if not readers:
        raise ImageError("no images were given")
    return readers


def read_picture(path: str | os.PathLike[str], content: bytes | None = None) -> Image.Image:
    """An image file as evaluation reads it: RGB, turned upright.

    Args:
        path: the file.
        content: its bytes, where the caller has read them already.

    Raises:
        ImageError: it isn't there or can't be read; names it.
    """
    path = Path(path)
    if content is None and not path.is_file():
        what = "is a folder; give its images" if path.is_dir() else "no such file"
        raise ImageError(f"{path}: {what}")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as opened:
            return _upright_rgb(opened)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: can't be read as an image: unknown format") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ImageError(f"{path}: can't be read as an image: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in mode RGB, turned upright where EXIF says so.

    Grey levels of 16 bits are brought to 8, where Pillow would cut them off at 255.

    Raises:
        ImageError: levels of 32 bits, of which nobody can say what white is.
    """
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not wide:
        raise ImageError("its levels have 32 bits; store it with 8 or 16 a channel")
    upright = ImageOps.exif_transpose(image)
    if wide:
        levels = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    return upright.convert("RGB")


def _opened(image: Image.Image, where: str) -> Image.Image:
    try:
        return _upright_rgb(image)
    except Exception as error:  # Pillow reads a file when its pixels are asked for
        raise ImageError(f"{where}a PIL image can't be read: {error}") from error


def _given(image: Any, where: str) -> list[Picture]:
    if isinstance(image, (str, os.PathLike)):
        return [partial(read_picture, image)]
    if isinstance(image, Image.Image):
        return [partial(_opened, image, where)]
    if isinstance(image, np.ndarray):
        return [partial(Image.fromarray, a) for a in _arrays(image, where)]
    if isinstance(image, Tensor):
        return [partial(Image.fromarray, a) for a in _arrays_of(image, where)]
    raise ImageError(
        f"{where}{type(image).__name__} is no image; a path, a PIL image, an array (H, W, 3), a "
        "tensor (3, H, W) or a list of those is needed"
    )


def _arrays(array: NDArray[Any], where: str) -> list[NDArray[np.uint8]]:
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
        hint = ""
        if array.ndim in (3, 4) and array.shape[-3] == 3:
            hint = "; arrays have the channels last: transpose it, or give a tensor"
        raise ImageError(
            f"{where}an array (H, W, 3) or (B, H, W, 3) in RGB is needed, not {array.shape}{hint}"
        )
    if array.dtype != np.uint8:
        raise ImageError(f"{where}an array of uint8, 0 to 255, is needed, not {array.dtype}")
    return [np.ascontiguousarray(a) for a in (array if array.ndim == 4 else array[None])]


def _arrays_of(tensor: Tensor, where: str) -> list[NDArray[np.uint8]]:
    shape = tuple(tensor.shape)
    if tensor.ndim not in (3, 4) or shape[-3] != 3 or 0 in shape:
        hint = ""
        if tensor.ndim in (3, 4) and shape[-1] == 3:
            hint = "; tensors have the channels first: permute it, or give an array"
        raise ImageError(
            f"{where}a tensor (3, H, W) or (B, 3, H, W) in RGB is needed, not {shape}{hint}"
        )
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.uint8:
        if not tensor.is_floating_point():
            raise ImageError(f"{where}a tensor of uint8 or floats is needed, not {tensor.dtype}")
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 255):  # NaN too
            raise ImageError(
                f"{where}values from {low:g} to {high:g}; pixels are from 0 to 255, not normalised"
            )
        if 0 < high <= 1:
            raise ImageError(
                f"{where}values from {low:g} to {high:g}; pixels are from 0 to 255: multiply by 255"
            )
        tensor = tensor.float().round().to(torch.uint8)
    channels_last = tensor.movedim(-3, -1).contiguous().numpy()
    return list(channels_last) if tensor.ndim == 4 else [channels_last]
