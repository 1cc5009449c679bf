"""Front-ends, backbones, heads, losses and the architectures that join them."""
