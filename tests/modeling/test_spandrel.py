"""Super-resolution networks of other people in front of ours."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY
from mini_systems import MINI
from safetensors.torch import save_file
from torch import Tensor

from lrreid_ext.cli import main
from lrreid_ext.config import CfgNode, get_cfg, load_cfg
from lrreid_ext.errors import ConfigError, WeightsError
from lrreid_ext.modeling.build import build_model, without_initial_weights
from lrreid_ext.modeling.frontends import Spandrel, build_frontend
from lrreid_ext.results.provenance import weights_hash
from lrreid_ext.weights import load_strictly

spandrel = pytest.importorskip("spandrel")


def compact(scale: int = 2) -> dict[str, Tensor]:
    """A tiny Real-ESRGAN Compact, which spandrel knows by its names."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    return Compact(num_feat=4, num_conv=2, upscale=scale).state_dict()


def swinir() -> dict[str, Tensor]:
    """A tiny SwinIR of scale 2, whose sizes must be multiples of its window."""
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    options: dict[str, Any] = {"depths": [1], "num_heads": [2], "embed_dim": 12, "window_size": 8}
    net = SwinIR(img_size=16, upscale=2, mlp_ratio=2.0, upsampler="pixelshuffledirect", **options)
    return net.state_dict()


def span() -> dict[str, Tensor]:
    """A tiny SPAN of scale 2, which derives weights from others whenever it evaluates."""
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(0)
    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=4, upscale=2).state_dict()


def cfg_of(path: Path, frozen: bool = True, feed: str = "reduced") -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.SR.NAME = "Spandrel"
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [24, 12]
    node = cfg.MODEL.SR.SPANDREL
    node.WEIGHTS, node.FROZEN, node.FEED = str(path), frozen, feed
    return cfg


def model_cfg(path: Path) -> CfgNode:
    """A whole model behind the network, small enough to export."""
    words = [
        *TINY, *MINI, "MODEL.INIT.WEIGHTS", "", "MODEL.HEADS.NUM_CLASSES", "6",
        "MODEL.SR.NAME", "Spandrel", "MODEL.SR.SPANDREL.WEIGHTS", str(path),
    ]  # fmt: skip
    return load_cfg(str(ROOT / "configs/osnet_hr.yml"), words)


def batch() -> Tensor:
    return torch.rand(2, 3, 24, 12, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize("feed", ["reduced", "full"])
@pytest.mark.parametrize(
    ("state", "scale"), [(compact(1), 1), (compact(4), 4), (swinir(), 2)], ids=["x1", "x4", "swin"]
)
def test_files_of_any_scale_restore_at_the_inputs_size(
    state: dict[str, Tensor], scale: int, feed: str, tmp_path: Path
) -> None:
    torch.save({"params_ema": state}, tmp_path / "net.pth")
    frontend = build_frontend(cfg_of(tmp_path / "net.pth", feed=feed)).eval()
    assert isinstance(frontend, Spandrel) and frontend.scale == scale
    images = batch()
    before = images.clone()
    out = frontend(images, torch.tensor([[12, 6], [24, 12]])).images
    assert out.shape == images.shape and torch.equal(images, before)
    assert not torch.allclose(out, images, atol=1.0)


def test_what_goes_in_and_comes_out() -> None:
    """Against the network itself, on an image that two steps of the reference reduce."""
    frontend = Spandrel(weights="", feed="reduced")
    frontend.adopt_state({f"net.{k}": v for k, v in compact(2).items()})
    images = batch() / 255
    small = torch.nn.functional.interpolate(images, (12, 6), mode="bicubic", antialias=True)
    assert frontend.net is not None
    torch.testing.assert_close(frontend.restore(images), frontend.net(small))


def test_frozen_or_trained_on(tmp_path: Path) -> None:
    save_file(compact(), tmp_path / "net.safetensors")
    frozen = build_frontend(cfg_of(tmp_path / "net.safetensors"))
    assert not frozen.learns and not [p for p in frozen.parameters() if p.requires_grad]
    assert not any(m.training for m in frozen.train().net.modules())
    learning = build_frontend(cfg_of(tmp_path / "net.safetensors", frozen=False)).train()
    assert learning.learns and all(m.training for m in learning.modules())
    output = learning(batch())
    sum(learning.losses(output, batch().flip(0)).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.parameters())


def test_a_trained_model_needs_no_file_any_more(tmp_path: Path) -> None:
    torch.save(compact(), tmp_path / "net.pth")
    cfg = model_cfg(tmp_path / "net.pth")
    model = build_model(cfg).eval()
    (tmp_path / "net.pth").unlink()
    again = build_model(without_initial_weights(cfg)).eval()
    with pytest.raises(ConfigError, match=r"SPANDREL\.WEIGHTS"):
        again.frontend.prepare(None)
    load_strictly(again, model.state_dict(), "checkpoint")
    images = {"images": torch.rand(2, 3, 64, 32) * 255}
    with torch.no_grad():
        torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize("frozen", [True, False])
def test_weights_are_the_same_before_and_after(frozen: bool, tmp_path: Path) -> None:
    torch.save(span(), tmp_path / "net.pth")
    frontend = build_frontend(cfg_of(tmp_path / "net.pth", frozen=frozen)).eval()
    assert not torch.equal(
        span()["conv_1.eval_conv.weight"], frontend.state_dict()["net.conv_1.eval_conv.weight"]
    )

    def used() -> str:
        with torch.no_grad():
            frontend(batch())
        return weights_hash(frontend)

    assert weights_hash(frontend) == used() == used()
    state = {k: v * 1.1 for k, v in frontend.state_dict().items()}
    load_strictly(frontend, state, "checkpoint")
    assert weights_hash(frontend) == used()
    # Trained on, and loaded again.
    if not frozen:
        frontend.train()
        optimizer = torch.optim.SGD(frontend.parameters(), 1e-3)
        sum(frontend.losses(frontend(batch()), batch().flip(0)).values()).backward()
        optimizer.step()
        load_strictly(frontend, frontend.state_dict(), "checkpoint")
        assert frontend.training and weights_hash(frontend.eval()) == used()


@pytest.mark.parametrize("name", ["span", "swinir"])
def test_exported_or_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"span": span, "swinir": swinir}[name](), tmp_path / "net.pth")
    cfg = model_cfg(tmp_path / "net.pth")
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "last_checkpoint").write_text("model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump(sort_keys=False))
    code = main(["export", str(tmp_path), "--to", "torch"])
    said = capsys.readouterr()
    if name == "span":
        assert code == 0 and "differs from PyTorch by" in said.out
    else:
        assert code == 2 and "can't make a graph of this model, nothing was written" in said.err
        assert len(said.err.strip().splitlines()) == 1
    assert len(list((tmp_path / "export").glob("*"))) == (name == "span")


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("this ran",))


def test_files_that_do_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": _Code()}))
    with pytest.raises(WeightsError, match=r"SPANDREL\.WEIGHTS.*evil"):
        build_frontend(cfg_of(tmp_path / "evil.pth"))
    assert "this ran" not in capsys.readouterr().out
    torch.save({"stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"other\.pth.*knows no network.*stem\.weight"):
        build_frontend(cfg_of(tmp_path / "other.pth"))
    from spandrel.architectures.Compact import Compact

    grey = Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=1, upscale=2).state_dict()
    torch.save(grey, tmp_path / "grey.pth")
    with pytest.raises(ConfigError, match="1 channels to 1"):
        build_frontend(cfg_of(tmp_path / "grey.pth"))
    with pytest.raises(ConfigError, match=r"SPANDREL\.FEED"):
        build_frontend(cfg_of(tmp_path / "grey.pth", feed="half"))
