"""Embed pictures of people with an exported model: python onnx_embed.py model.onnx a.png b.png"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
for path in sys.argv[2:]:
    crop = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    images = crop.transpose(2, 0, 1)[None]  # (1, 3, H, W) uint8
    native_size = np.array([crop.shape[:2]])  # height and width
    (embedding,) = session.run(None, {"images": images, "native_size": native_size})
    print(path, embedding.shape, embedding.ravel()[:4])
