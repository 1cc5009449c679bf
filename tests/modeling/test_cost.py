"""Costs against counts by hand."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from lrreid_ext.evaluation.cost import gmacs, latency, parameters, parameters_used, passes


def test_convolution_and_linear_by_hand():
    conv = nn.Conv2d(3, 8, (5, 3), stride=2, padding=(2, 1))
    assert parameters(conv) == 3 * 8 * 5 * 3 + 8
    # 16x12 -> 8x6 outputs of 8 channels, each 3 * 5 * 3 products, for 2 images
    expected = 2 * 8 * 6 * 8 * 3 * 5 * 3
    assert gmacs(conv, torch.zeros(2, 3, 16, 12)) == pytest.approx(expected / 1e9)
    linear = nn.Linear(7, 11)
    assert parameters(linear) == 7 * 11 + 11
    assert gmacs(linear, torch.zeros(5, 7)) == pytest.approx(5 * 7 * 11 / 1e9)


def test_grouped_and_transposed_convolutions():
    grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4, bias=False)
    assert gmacs(grouped, torch.zeros(1, 8, 6, 5)) == pytest.approx(6 * 5 * 16 * 2 * 9 / 1e9)
    up = nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False)
    assert gmacs(up, torch.zeros(1, 4, 5, 3)) == pytest.approx(5 * 3 * 4 * 6 * 4 / 1e9)


def test_the_meta_device_counts_the_same():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    here = gmacs(net, torch.zeros(1, 3, 8, 8))
    assert gmacs(net.to("meta"), torch.zeros(1, 3, 8, 8, device="meta")) == here
    assert here == pytest.approx((36 * 4 * 27 + 4 * 36 * 2) / 1e9)


def test_shared_and_frozen_parameters():
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    assert parameters(nn.Sequential(layer, layer)) == 4


def test_modes_and_statistics_are_as_before():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[1].eval()
    gmacs(net, torch.randn(2, 3, 8, 8))
    latency(net, torch.randn(2, 3, 8, 8), repeats=1)
    assert [m.training for m in net] == [True, False, True]
    assert net.training
    assert net[1].num_batches_tracked == 0


class Sleep(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        time.sleep(0.02 if self.calls != 3 else 0.3)
        return x


def test_latency_is_the_median_after_the_warm_up():
    net = Sleep()
    seconds = latency(net, torch.zeros(1), repeats=3, warmup=2)
    assert net.calls == 5
    assert 0.02 <= seconds < 0.2


def test_parameters_used_leaves_out_what_a_query_does_not_need():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3, bias=False)
            self.again = self.body
            self.teacher = nn.Linear(50, 50)
            # Held by a module that runs, used in training alone.
            self.weight = nn.Parameter(torch.zeros(10, 4))

        def forward(self, batch):
            assert next(self.teacher.parameters()).device == batch["x"].device
            maps = self.again(self.body(batch["x"]).detach()[:, :3])
            out = nn.functional.normalize(maps.mean((2, 3)))
            return out @ self.weight.t() if self.training else out

    net = Net()
    assert parameters_used(net, {"x": torch.zeros(1, 3, 8, 8)}) == 4 * 27
    assert parameters(net) == 4 * 27 + 2550 + 40
    images = {"x": torch.zeros(1, 3, 8, 8)}
    assert passes(net, "body", images) and not passes(net, "teacher", images)
    assert passes(net, "nothing", images)  # which has no parameters to be read
    assert net.training
