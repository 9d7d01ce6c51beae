"""Small PyTorch models of every shape of forward pass, each with the layers it can be split at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """In-place addition, in-place activations, and a skip around the middle."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.side = nn.Conv2d(4, 4, 1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4 * 36, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        self.act(x)
        skip, side = x, self.side(x)
        y = self.conv1(x)
        y = functional.relu_(y)
        y = self.conv2(y)
        y += skip
        side += functional.relu(y)
        return self.out(side.flatten(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.down2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.bottom = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2)
        self.join = nn.Conv2d(12, 4, 3, padding=1)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        c = self.up(self.bottom(functional.max_pool2d(b, 2))[..., :1, :1])
        c = functional.interpolate(c, b.shape[-2:])
        d = functional.interpolate(self.join(torch.cat([b, c], 1)), a.shape[-2:])
        return self.out(torch.cat([a, d], 1)).mean((2, 3))


class Shared(nn.Module):
    """One activation and one convolution that run several times."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), self.relu)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(self.conv(self.block(x)))
        x = self.relu(self.conv(x) - 0.1)
        return self.out(x.mean((2, 3)))


class Twins(nn.Module):
    def forward(self, x):
        return {"first": (x * 2, "a word"), "second": [x - 1, None]}


class Tuples(nn.Module):
    """Tuples and dicts between the layers, a tuple out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.twins = Twins()
        self.conv = nn.Conv2d(4, 4, 3)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        both = self.twins(self.stem(x))
        first, second = both["first"][0], both["second"][0]
        return self.out((self.conv(first) + second[..., 1:-1, 1:-1]).mean((2, 3))), second


class Functional(nn.Module):
    """Arithmetic between the layers, writes into the input, an unregistered list of layers."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])
        self.steps = [*self.convs]
        self.out = nn.Linear(3, 5)

    def forward(self, x, scale=None):
        x -= 0.3
        y = x
        for step in self.steps:
            y = torch.tanh(step(y)) + 0.1 * x
        y[:, 0] = 1.0
        if scale is not None:
            y = y * scale[:, None, None, None]
        x *= 2
        return self.out((y + x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=batch_first, bidirectional=True, dropout=0.5)
        self.norm = nn.LayerNorm(10)
        self.out = nn.Linear(10, 5)
        self.batch_first = batch_first

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2)[:, :7])
        if not self.batch_first:
            x = x.transpose(0, 1)
        x, (hidden, _) = self.lstm(x)
        x = self.norm(x).mean(1 if self.batch_first else 0)
        return self.out(x + torch.cat([hidden[-2], hidden[-1]], -1))


class Transformer(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 10, 8))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=i > 0) for i in range(3))
        )
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.out(self.blocks(x)[:, 0])


class Windowed(nn.Module):
    """Windows on the axis of the images between the layers, and a table that depends on no image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.table = nn.Embedding(9, 4)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        n = len(x)
        windows = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 4, 5, 1).reshape(n * 4, 9, 4)
        windows = self.mix(windows + self.table(torch.arange(9)))
        x = self.norm(windows.reshape(n, 36, 4))
        return self.out(x.mean(1))


class Collecting(nn.Module):
    """Features reach the end through hooks, from layers directly below and further down."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.down = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Tanh())
        self.last = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 5)
        self.collected = []
        for layer in (self.stem[1], self.down, self.down[0], self.last):
            layer.register_forward_hook(self.collect)

    def collect(self, module, args, output):
        self.collected.append(output)

    def forward(self, x):
        self.collected.clear()
        self.last(self.down(self.stem(x)))
        x = sum((i + 1) * features.mean((2, 3)) for i, features in enumerate(self.collected))
        self.collected.clear()
        return self.out(x)


class Wrapped:
    """A container that nobody looks into."""

    def __init__(self, x):
        self.x = x


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y, Wrapped(y * 2)


class Opaque(nn.Module):
    """Things between the layers that hide their tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Wrapping(), Wrapping()
        self.between = nn.Conv2d(4, 3, 1)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        y, hidden = self.first(x)
        z, more = self.second(self.between(y) + 0.1)
        return self.out((z + hidden.x + more.x).mean((2, 3)))


def nested():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Sequential(nn.Identity(), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Sequential(nn.Hardswish())),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def volumes():
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@dataclass(frozen=True)
class Case:
    """A model and the layers it can be split at."""

    build: Callable[[], nn.Module]
    layers: tuple[str, ...]

    def make(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().to(dtype)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model


CASES = {
    "nested": Case(nested, ("0.0", "0.1", "0.2", "0", "1.0", "1.1", "1.2", "1.3.0", "1", "2", "3")),
    "residual": Case(Residual, ("stem", "norm", "act", "conv1", "conv2")),
    "unet": Case(UNet, ("down1.0", "down1", "down2.0", "down2", "bottom", "up", "join")),
    "shared": Case(Shared, ("stem", "block.0", "block", "conv:0", "conv:1", "relu:0", "relu:1", "relu:3")),
    "tuples": Case(Tuples, ("stem", "twins", "conv")),
    "functional": Case(Functional, ("convs.0", "convs.1", "convs.3")),
    "recurrent": Case(lambda: Recurrent(True), ("embed", "lstm", "norm")),
    "recurrent_second": Case(lambda: Recurrent(False), ("embed", "lstm", "norm")),
    "transformer": Case(
        Transformer, ("patch", "blocks.0", "blocks.1", "blocks.1.self_attn", "blocks.2.linear1", "blocks")
    ),
    "windowed": Case(Windowed, ("stem", "norm")),
    "collecting": Case(Collecting, ("stem.0", "stem.1", "stem", "down.0", "down", "last")),
    "opaque": Case(Opaque, ("first.conv", "first", "between", "second", "second.conv")),
    "volumes": Case(volumes, ("0", "1", "2", "3", "4", "5", "6", "7")),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def make_images(n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 6, 6, dtype=dtype, generator=generator)


def take_snapshot(model: nn.Module, x: Any) -> Any:
    """Everything of a model that explaining must leave alone."""
    random_state = torch.get_rng_state()
    modules = list(model.modules())
    state = {
        "flags": [m.training for m in modules],
        "attributes": [sorted(vars(m)) for m in modules],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules
        ],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad is None for p in model.parameters()],
        "state": [(name, t.clone().numpy().tobytes()) for name, t in model.state_dict().items()],
        "call": (nn.Module.__call__, nn.Module._call_impl),
        "grad_mode": torch.is_grad_enabled(),
    }
    buffers = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(0)
    output = model(x.clone())
    # A model in training mode moves its averages on.
    for buffer, kept in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(kept)
    state["output"] = [
        t.detach().numpy().tobytes() for t in (output if isinstance(output, tuple) else [output])
    ]
    state["graph"] = [t.requires_grad for t in (output if isinstance(output, tuple) else [output])]
    torch.set_rng_state(random_state)
    return state


def start_counting(model: nn.Module) -> dict[str, int]:
    """Count how often the forward of each module really runs, from now on."""
    calls: dict[str, int] = {}

    def wrap(name: str, module: nn.Module) -> None:
        forward = module.forward
        calls[name] = 0

        def counted(*args, **kwargs):
            calls[name] += 1
            return forward(*args, **kwargs)

        module.forward = counted

    for name, module in model.named_modules():
        wrap(name, module)
    return calls


@contextmanager
def plain_replacement(model: nn.Module, layer: str, z: torch.Tensor, where: str = "output") -> Iterator[None]:
    """Context in which a run of the whole model gets `z` in place of the layer's first tensor."""
    name, _, call = layer.partition(":")
    module = model.get_submodule(name)
    seen = 0

    def put(tree):
        nonlocal seen
        seen += 1
        if seen - 1 != int(call or 0):
            return tree
        place = first_tensor(tree)
        value = z if place.shape[0] == len(z) else z.transpose(0, 1)
        if where == "input":
            args, kwargs = tree
            return (value, *args[1:]), kwargs
        # Written into the tensor itself, as a layer that works in place would.
        place.copy_(value)
        return tree

    if where == "input":
        handle = module.register_forward_pre_hook(
            lambda module, args, kwargs: put((args, kwargs)), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda module, args, output: put(output))
    # Fused attention calls no modules, and so no hooks.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        handle.remove()


def first_tensor(tree: Any) -> torch.Tensor | None:
    if isinstance(tree, torch.Tensor):
        return tree
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        return next((found for part in tree if (found := first_tensor(part)) is not None), None)
    return None


@pytest.fixture
def replacement() -> tuple[Callable[..., Any], Callable[[Any], torch.Tensor | None]]:
    """How to run a model with other features, and how to find the features in what a layer gives."""
    return plain_replacement, first_tensor


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    return make_images


@pytest.fixture
def snapshot() -> Callable[[nn.Module, Any], Any]:
    return take_snapshot


@pytest.fixture
def count_calls() -> Callable[[nn.Module], dict[str, int]]:
    return start_counting
