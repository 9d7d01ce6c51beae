"""Random networks in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # as all the world calls it
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from tests.generator.cases import Signature
from tests.generator.programs import Draw, Parts, Program

part = Parts()


class Checkpoints:
    """Whether blocks are checkpointed. The judge's own passes are without, which gives the same."""

    on = True


def checkpoint(function: Callable[[Any], Any], x: Any, **options: Any) -> Any:
    return torch_checkpoint(function, x, **options) if Checkpoints.on else function(x)


@dataclass
class Output:
    hidden: Any
    logits: Any


class Named(NamedTuple):
    hidden: Any
    logits: Any


SCOPE = {"torch": torch, "F": F, "nn": nn, "checkpoint": checkpoint, "Output": Output, "Named": Named}


class Counter(nn.Module):
    """Passes x on, and counts in a buffer how often it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x


class Keeper(nn.Module):
    """Passes x on, and keeps it on itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        return x


def source(program: Program, name: str, parameters: str = "x", returns: str = "x") -> str:
    """The class of a program's model."""
    body = "\n".join(f"        {line}" for line in [*program.lines, f"return {returns}"])
    return f"class {name}(nn.Module):\n    def forward(self, {parameters}):\n{body}"


def build(program: Program, name: str, **signature: str) -> nn.Module:
    scope: dict[str, Any] = dict(SCOPE)
    exec(source(program, name, **signature), scope)
    module: nn.Module = scope[name]()
    for child, layer in program.layers.items():
        module.add_module(child, layer)
    return module


def block(program: Program, grow: Callable[[Program], Any], call: str = "self.{name}(x)") -> None:
    """A block with a body of its own, called by a line."""
    inner = program.inner()
    grow(inner)
    if program.draw.flip(0.3) and all(line == f"x = self.{n}(x)" for line, n in plain(inner)):
        module: nn.Module = nn.Sequential()
        for name, layer in inner.layers.items():
            module.add_module(name, layer)
    else:
        module = build(inner, "Block")
    name = program.add(module, inner.axes)
    program.take(name, inner)
    program.line(f"x = {call.format(name=name)}")


def plain(program: Program) -> list[tuple[str, str]]:
    """Lines and layers one by one; a line that is none of them where the program is not a plain chain."""
    names = list(program.layers)
    return list(zip(program.lines, names, strict=False)) + [("", "?")] * (len(program.lines) != len(names))


def call(program: Program, layer: nn.Module, axes: str | None = None, **sizes: int) -> str:
    """Append a layer that is called once on x."""
    name = program.add(layer, axes)
    program.line(f"x = self.{name}(x)")
    if axes is not None or sizes:
        program.turn(axes or program.axes, **sizes)
    return name


# -- parts for every form --------------------------------------------------------------------------

EVERY = ("BCHW", "BHWC", "BTC", "TBC", "BCT", "BC")


@part(*EVERY, weight=3)
def activation(p: Program) -> None:
    layers = (nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(inplace=True), nn.Tanh(), nn.Identity())
    call(p, p.draw.choice((*layers, nn.Dropout(0.5), nn.LeakyReLU(0.1), nn.ELU(inplace=True))))


@part(*EVERY)
def function(p: Program) -> None:
    p.line(p.draw.choice(("x = F.relu(x)", "x = F.gelu(x)", "x = x.tanh()", "x = 1.5 * x", "x = x - 0.2")))


@part(*EVERY, weight=0.7)
def write(p: Program) -> None:
    lines = ("x = F.relu_(x)", "x.mul_(1.3)", "x += 0.3", "x = x.clamp_(min=-0.2)", "x[:, :1] *= 0.5")
    line = p.draw.choice(lines)
    # No image is to be treated in another way than the others.
    p.line(line.replace("x[:, :1]", "x[..., :1]") if p.axes == "TBC" else line, "in place")


@part(*EVERY, weight=0.12)
def data_write(p: Program) -> None:
    lines = ("x.data.clamp_(min=0)", "x.data.mul_(0.5)", "x.detach().numpy()[:] *= 0.5")
    p.line(p.draw.choice(lines), "write that autograd does not see")


@part(*EVERY, weight=0.2)
def stateful(p: Program) -> None:
    which = p.draw.choice((Counter, Keeper, None))
    if which is None:
        p.line("x = x + 0 * torch.rand(())", "random numbers in a forward")
    else:
        call(p, which())
        p.quirks.add("state in a forward")


@part(*EVERY, weight=1.5)
def residual(p: Program) -> None:
    if p.depth > 1:
        return
    before = p.axes, dict(p.sizes)

    def grow(inner: Program) -> None:
        inner.line("s = x")
        same(inner)
        joins = ["x = x + s", "x = s + x", "x = (x + s) / 2", "x += s", "x = torch.add(s, x)"]
        inner.line(p.draw.choice(joins))
        if inner.lines[-1] == "x += s":
            inner.quirks.add("in place")

    def writes_into_skip(inner: Program) -> None:
        inner.line("s = 1.0 * x")
        same(inner)
        quiet = p.draw.flip(0.5)
        inner.line(
            "s.data.clamp_(min=0)\nx = x + s" if quiet else "s.add_(x)\nx = s",
            "write that autograd does not see" if quiet else "in place",
        )

    body = writes_into_skip if p.draw.flip(0.1) else grow
    if p.draw.flip(0.5):
        block(p, body)
    else:
        inner = p
        body(inner)
    assert (p.axes, p.sizes) == before


def same(p: Program) -> None:
    """Something that keeps the shape."""
    if p.axes in ("BHWC", "BTC", "TBC", "BC"):
        call(p, nn.Linear(p.channels, p.channels))
    elif p.axes == "BCHW":
        conv = nn.Conv2d(p.channels, p.channels, 3, padding=1)
        call(p, p.draw.choice((conv, nn.Conv2d(p.channels, p.channels, 1))))
    else:
        call(p, nn.Conv1d(p.channels, p.channels, 3, padding=1))
    if p.draw.flip(0.5):
        norm(p)
    if p.draw.flip(0.7):
        activation(p)


@part(*EVERY, weight=0.5)
def repeated(p: Program) -> None:
    """One layer, or one block, that runs twice."""
    if p.depth > 1:
        return
    inner = p.inner()
    same(inner)
    module = next(iter(inner.layers.values())) if p.draw.flip(0.6) else build(inner, "Twice")
    name = p.add(module, calls=2)
    if type(module).__name__ == "Twice":
        p.take(name, inner)
    p.line(f"x = self.{name}(x)\nx = self.{name}(F.relu(x))")


@part("BCHW", "BTC", "BC", weight=0.25)
def checkpointed(p: Program) -> None:
    if p.depth:
        return
    reentrant = p.draw.flip(0.3)
    block(p, same, f"checkpoint(self.{{name}}, x, use_reentrant={reentrant})")
    p.quirks.add("checkpoint")


@part(*EVERY, weight=1.5)
def norm(p: Program) -> None:
    c = p.channels
    if p.axes in ("BHWC", "BTC", "TBC"):
        call(p, nn.LayerNorm(c))
        return
    dims = len(p.places_shape)
    own = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims](c)
    layers: list[nn.Module] = [own, own]
    if dims:
        layers += [
            nn.GroupNorm(1, c),
            nn.GroupNorm(c, c),
            (nn.InstanceNorm1d, nn.InstanceNorm2d)[dims - 1](c),
        ]
    else:
        layers.append(nn.LayerNorm(c))
    layer = p.draw.choice(layers)
    if dims == 2 and p.draw.flip(0.05):
        layer = nn.BatchNorm2d(c, track_running_stats=False)
        p.quirks.add("batch statistics")
    call(p, layer)


# -- images ----------------------------------------------------------------------------------------


@part("BCHW", weight=4)
def conv(p: Program) -> None:
    c, out = p.channels, p.draw.size()
    groups = p.draw.choice([1, 1, c]) if out % c == 0 else 1
    size, stride = p.draw.choice((1, 3)), 2 if min(p.places_shape) >= 5 and p.draw.flip(0.3) else 1
    h, w = ((side - 1) // stride + 1 for side in p.places_shape)
    layer = nn.Conv2d(c, out, size, stride, size // 2, groups=groups, bias=p.draw.flip(0.8))
    call(p, layer, "BCHW", C=out, H=h, W=w)
    if p.draw.flip(0.4):
        norm(p)


@part("BCHW")
def pool(p: Program) -> None:
    side = p.draw.size()
    h, w = p.places_shape
    options: list[tuple[nn.Module, int, int]] = [
        (nn.AvgPool2d(3, 1, 1), h, w),
        (nn.MaxPool2d(3, 1, 1), h, w),
        (nn.AdaptiveAvgPool2d(min(side, h)), min(side, h), min(side, h)),
    ]
    if min(h, w) >= 4:
        options += [(nn.MaxPool2d(2), h // 2, w // 2), (nn.AvgPool2d(2), h // 2, w // 2)] * 2
    layer, h, w = p.draw.choice(options)
    call(p, layer, "BCHW", H=h, W=w)


@part("BCHW", weight=0.7)
def squeeze_and_excite(p: Program) -> None:
    def grow(inner: Program) -> None:
        c, few = inner.channels, p.draw.size()
        same(inner)
        first, second = inner.add(nn.Linear(c, few), "BC"), inner.add(nn.Linear(few, c), "BC")
        inner.line(f"g = self.{second}(F.relu(self.{first}(x.mean((2, 3))))).sigmoid()")
        inner.line("x = x * g[:, :, None, None]")

    block(p, grow)


@part("BCHW", weight=0.7)
def convnext(p: Program) -> None:
    def grow(inner: Program) -> None:
        c = inner.channels
        inner.line("s = x")
        if p.draw.flip(0.5):
            call(inner, nn.Conv2d(c, c, 3, padding=1, groups=c))
        inner.line("x = x.permute(0, 2, 3, 1)")
        inner.turn("BHWC")
        call(inner, nn.LayerNorm(c))
        call(inner, nn.Linear(c, 2 * c), "BHWC", C=2 * c)
        call(inner, nn.GELU())
        call(inner, nn.Linear(2 * c, c), "BHWC", C=c)
        inner.line("x = x.permute(0, 3, 1, 2) + s")
        inner.turn("BCHW")

    block(p, grow)


@part("BCHW", weight=0.5)
def concatenation(p: Program) -> None:
    name = p.add(nn.Conv2d(p.channels, p.draw.common, 1), "BCHW")
    p.line(f"x = torch.cat([x, self.{name}(x)], 1)")
    p.turn("BCHW", C=p.channels + p.draw.common)


@part("BCHW")
def turn_image(p: Program) -> None:
    h, w = p.places_shape
    lines = [("x = x.permute(0, 2, 3, 1)", "BHWC"), ("x = x.flatten(2).transpose(1, 2)", "BTC")]
    text, axes = p.draw.choice([*lines, ("x = x.flatten(2)", "BCT")])
    p.line(text)
    p.turn(axes, T=h * w)


@part("BCHW", "BHWC")
def exchange(p: Program) -> None:
    """Exchange rows and columns."""
    a = 2 if p.axes == "BCHW" else 1
    order = {2: "0, 1, 3, 2", 1: "0, 2, 1, 3"}[a]
    lines = (
        f"x = x.transpose({a}, {a + 1})",
        f"x = x.permute({order})",
        f"x = torch.rot90(x, 1, ({a}, {a + 1}))",
    )
    p.line(p.draw.choice(lines))
    if "rot90" in p.lines[-1]:
        p.reverse(1)
    p.exchange()


@part("BCHW", "BHWC", "BTC", "BCT", weight=0.4)
def reverse(p: Program) -> None:
    """Turn an axis of places around."""
    places = [index for index, axis in enumerate(p.axes) if axis not in "BC"]
    place = p.draw.randrange(len(places))
    p.line(f"x = x.flip({places[place]})")
    p.reverse(place)


@part("BHWC", weight=2)
def linear_last(p: Program) -> None:
    out = p.draw.size()
    call(p, nn.Linear(p.channels, out), "BHWC", C=out)


@part("BHWC")
def to_first(p: Program) -> None:
    p.line("x = x.permute(0, 3, 1, 2)")
    p.turn("BCHW")


# -- sequences and signals -------------------------------------------------------------------------


@part("BTC", "TBC", weight=2)
def linear(p: Program) -> None:
    out = p.draw.size()
    call(p, nn.Linear(p.channels, out), p.axes, C=out)


def heads(p: Program) -> int:
    return p.draw.choice([n for n in (1, 2, 4) if p.channels % n == 0])


@part("BTC", "TBC", weight=2)
def attention(p: Program) -> None:
    name = p.add(nn.MultiheadAttention(p.channels, heads(p), batch_first=p.axes == "BTC"))
    weights = ", need_weights=False" if p.draw.flip(0.5) else ""
    p.line(f"a, _ = self.{name}(x, x, x{weights})")
    p.line(p.draw.choice(("x = x + a", "x = a")))


@part("BTC", "TBC")
def encoder(p: Program) -> None:
    first, before = p.axes == "BTC", p.draw.flip(0.5)
    layer = nn.TransformerEncoderLayer(
        p.channels, heads(p), 2 * p.draw.size(), batch_first=first, norm_first=before
    )
    name = call(p, layer)
    p.places[f"{name}.linear2"] = p.places[f"{name}.norm1"] = p.places[name]


@part("BTC")
def own_attention(p: Program) -> None:
    def grow(inner: Program) -> None:
        c, n, t = inner.channels, heads(inner), inner.sizes["T"]
        qkv = inner.add(nn.Linear(c, 3 * c), "BTC")
        inner.line(
            f"q, k, v = (m.reshape(len(x), {t}, {n}, -1).transpose(1, 2) for m in self.{qkv}(x).chunk(3, -1))"
        )
        inner.line(f"a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), {t}, {c})")
        out = inner.add(nn.Linear(c, c), "BTC")
        inner.line(f"x = x + self.{out}(a)")

    block(p, grow)


@part("BTC", "TBC", weight=2)
def recurrent(p: Program) -> None:
    out, both = p.draw.size(), p.draw.flip(0.3)
    kind = p.draw.choice((nn.LSTM, nn.GRU, nn.RNN))
    layer = kind(
        p.channels, out, num_layers=p.draw.choice((1, 1, 2)), bidirectional=both, batch_first=p.axes == "BTC"
    )
    name = p.add(layer)
    p.line(f"x, _ = self.{name}(x)")
    p.turn(p.axes, C=out * (1 + both))


@part("BTC", "TBC", weight=1.2)
def turn_sequence(p: Program) -> None:
    axes = p.draw.choice(("TBC", "BCT")) if p.axes == "BTC" else "BTC"
    p.line("x = x.transpose(1, 2)" if axes == "BCT" else "x = x.transpose(0, 1)")
    p.turn(axes)


@part("BTC", weight=0.2)
def folded(p: Program) -> None:
    t, c, out = p.sizes["T"], p.channels, p.draw.size()
    name = p.add(nn.Linear(c, out), "(BT)C")
    p.line(f"x = self.{name}(x.reshape(-1, {c})).reshape(-1, {t}, {out})", "places folded into the batch")
    p.turn("BTC", C=out)


@part("BCT", weight=3)
def conv1d(p: Program) -> None:
    out, size = p.draw.size(), p.draw.choice((1, 3))
    call(p, nn.Conv1d(p.channels, out, size, padding=size // 2), "BCT", C=out)


@part("BCT")
def pool1d(p: Program) -> None:
    t = p.sizes["T"]
    if t >= 4:
        layer = p.draw.choice((nn.MaxPool1d, nn.AvgPool1d))(2)
        call(p, layer, "BCT", T=t // 2)


@part("BCT", weight=0.7)
def turn_signal(p: Program) -> None:
    p.line("x = x.transpose(1, 2)")
    p.turn("BTC")


# -- vectors ---------------------------------------------------------------------------------------


@part("BC", weight=3)
def linear_vector(p: Program) -> None:
    out = p.draw.size()
    call(p, nn.Linear(p.channels, out), "BC", C=out)


def to_vector(p: Program) -> None:
    """Leave one vector for each image."""
    options = {
        "BCHW": ["x = x.mean((2, 3))", "x = x.amax((2, 3))", "x = x.flatten(1)", nn.Flatten(), "pool"],
        "BHWC": ["x = x.mean((1, 2))", "x = x.flatten(1)"],
        "BTC": ["x = x.mean(1)", "x = x[:, -1]", "x = x[:, 0]", "x = x.flatten(1)"],
        "TBC": ["x = x.mean(0)", "x = x[-1]", "x = x[0]"],
        "BCT": ["x = x.mean(2)", "x = x.amax(2)", nn.Flatten()],
    }.get(p.axes)
    if options is None:
        return
    chosen: Any = p.draw.choice(options)
    size = p.channels
    for side in p.places_shape:
        size *= side
    if chosen == "pool":
        call(p, nn.AdaptiveAvgPool2d(1), "BCHW", H=1, W=1)
        chosen, size = nn.Flatten(), p.channels
    flat = isinstance(chosen, nn.Flatten) or "flatten" in chosen
    if isinstance(chosen, nn.Module):
        call(p, chosen, "BC", C=size)
    else:
        p.line(chosen)
        p.turn("BC", C=size if flat else p.channels)


# -- models ----------------------------------------------------------------------------------------


def draw_input(draw: Draw) -> tuple[Program, Signature]:
    """A program that starts with an input, and what it takes so far."""
    form = draw.choice(("BCHW",) * 5 + ("BTC",) * 3 + ("tokens",) * 2 + ("BCT", "BC"))
    sizes = {axis: draw.size() for axis in ("BTC" if form == "tokens" else form) if axis != "B"}
    if form == "BCHW":
        sizes |= {"H": max(sizes["H"], 4), "W": max(sizes["W"], 4)}
    if form != "tokens":
        program = Program(draw, form, sizes)
        shape = tuple(sizes[axis] for axis in form if axis != "B")
        return program, Signature(["float"], [shape], [False], form)
    program = Program(draw, "BTC", sizes)
    words = draw.randint(3, 9)
    name = program.add(nn.Embedding(words, sizes["C"]))
    program.line(f"x = self.{name}(x)")
    return program, Signature([words], [(sizes["T"],)], [False], "BT")


def second_input(p: Program, signature: Signature) -> None:
    """Another input: a table that all images share, or something for each image."""
    if p.axes == "BTC" and p.draw.flip(0.5):
        p.line("x = x + y")
        signature.shapes.append((p.sizes["T"], p.channels))
        signature.shared.append(True)
    elif p.axes == "BC" and p.draw.flip(0.6):
        size = p.draw.size()
        name = p.add(nn.Linear(size, p.channels), "BC")
        p.line(f"x = x + self.{name}(y)")
        signature.shapes.append((size,))
        signature.shared.append(False)
        p.places.pop(name)  # the image does not pass it
    else:
        return
    signature.kinds.append("float")


def finish(p: Program, signature: Signature) -> None:
    """The head: logits or probabilities, and what the model returns."""
    draw = p.draw
    p.line("h = x")
    if len(signature.kinds) == 1 and draw.flip(0.12):
        # As in models of images and texts: the texts are shared by all images.
        classes, size = max(2, draw.size()), draw.size()
        name = p.add(nn.Linear(size, p.channels), "BC")
        p.places.pop(name)
        p.line(f"y = self.{name}(y)\nx = 3 * F.normalize(x, dim=1) @ F.normalize(y, dim=1).T")
        signature.kinds.append("float")
        signature.shapes.append((classes, size))
        signature.shared.append(True)
    else:
        classes = draw.choice((1, *(max(2, draw.size()) for _ in range(6))))
        call(p, nn.Linear(p.channels, classes), "BC", C=classes)
    signature.classes = classes
    signature.end = draw.choice(("none",) * 4 + ("softmax", "sigmoid", "sigmoid"))
    if classes == 1:
        signature.end = draw.choice(("none", "sigmoid"))
    if signature.end != "none":
        if draw.flip(0.5):
            call(p, nn.Softmax(dim=1) if signature.end == "softmax" else nn.Sigmoid())
        else:
            p.line("x = x.softmax(1)" if signature.end == "softmax" else "x = torch.sigmoid(x)")
    by_key, first = (lambda outputs: outputs["logits"]), (lambda outputs: outputs[0])
    signature.returns, signature.main = draw.choice(
        [("x", lambda outputs: outputs)] * 6
        + [
            ("x, h", first),
            ("[x, h]", first),
            ('{"embedding": h, "logits": x}', by_key),
            ('{"loss": None, "logits": x}', by_key),
            ('{"scores": x}', lambda outputs: outputs["scores"]),
            ("Output(hidden=h, logits=x)", lambda outputs: outputs.logits),
            ("Named(h, x)", lambda outputs: outputs.logits),
        ]
    )


def draw_model(draw: Draw) -> tuple[nn.Module, Program, Signature]:
    """A network, in float64 and in evaluation mode."""
    p, signature = draw_input(draw)
    part.grow(p, draw.randint(1, 5))
    second_input(p, signature)
    part.grow(p, draw.randint(0, 2))
    to_vector(p)
    if len(signature.kinds) == 1:
        second_input(p, signature)
    part.grow(p, draw.randint(0, 2))
    finish(p, signature)
    parameters = ", ".join("xyz"[: len(signature.kinds)])
    model = build(p, "Net", parameters=parameters, returns=signature.returns).double().eval()
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator, dtype=value.dtype))
            else:
                fan = value[0].numel() if value.ndim > 1 else 4
                drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype) / fan**0.5
                value.copy_(drawn + (value.ndim == 1 and "norm" in name and name.endswith("weight")))
    return model, p, signature
