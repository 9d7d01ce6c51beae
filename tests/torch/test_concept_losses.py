"""What the losses and metrics of concepts must do as PyTorch modules."""

import copy

import pytest
import torch
from torch import nn

from iba_torch.concepts import BalancedBCELoss, IoU, Net2VecLoss, SetIoU, TverskyLoss, WeightedLossSum

OUTPUTS = torch.tensor([[[0.8, 0.4], [0.1, 0.6]]])
TARGETS = torch.tensor([[[1, 1], [0, 0]]])


def test_calls_run_the_hooks():
    loss = Net2VecLoss()
    seen = []
    loss.register_forward_hook(lambda module, args, output: seen.append((len(args), float(output))))
    value = loss(OUTPUTS, TARGETS)
    assert isinstance(loss, nn.Module)
    assert seen == [(2, pytest.approx(float(value)))]


def test_losses_train_a_model():
    torch.manual_seed(0)
    model = nn.Conv2d(2, 1, 1)
    x = torch.randn(4, 2, 5, 5)
    targets = (x[:, :1] > 0.3).float()
    loss = WeightedLossSum([TverskyLoss(from_logit=True), BalancedBCELoss(from_logit=True)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model(x), targets).backward()
        optimizer.step()
    assert SetIoU()(model(x).sigmoid(), targets) > 0.95


def test_modules_among_the_summands_are_children():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(3.0))

        def forward(self, outputs, targets):
            return self.factor * outputs.mean()

    scaled = Scaled()
    loss = WeightedLossSum([scaled, lambda outputs, targets: targets.float().mean()])
    assert list(loss.parameters()) == [scaled.factor]
    loss(OUTPUTS, TARGETS).backward()
    assert float(scaled.factor.grad) == pytest.approx(0.5 * float(OUTPUTS.mean()))
    assert len(copy.deepcopy(loss).losses) == 2


def test_metrics_keep_no_graph():
    outputs = OUTPUTS.clone().requires_grad_()
    metric = SetIoU()
    metric.update(outputs, TARGETS)
    assert not metric.value().requires_grad
    assert float(metric.value()) == pytest.approx(1 / 3, abs=1e-6)
    assert float(IoU()(outputs, TARGETS)) == pytest.approx(1 / 3, abs=1e-6)


def test_autocast_leaves_values_alone():
    loss = TverskyLoss()
    expected = float(loss(OUTPUTS, TARGETS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(loss(OUTPUTS, TARGETS)) == pytest.approx(expected)
