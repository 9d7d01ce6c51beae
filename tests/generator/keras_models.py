"""Random networks in Keras: functional, sequential, subclassed and nested."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
from keras import layers, ops

from tests.generator.cases import Signature
from tests.generator.programs import Draw, Parts, Place, Program

part = Parts()

SCOPE = {"keras": keras, "ops": ops, "layers": layers}


def call(
    program: Program, kind: Any, *args: Any, axes: str | None = None, to: Any = None, **options: Any
) -> str:
    """Append a layer that is called once on x. `to` are the new sizes of axes."""
    layer = kind(*args, **options)
    name = program.add(layer, axes)
    program.line(f"x = self.{name}(x)")
    if axes is not None or to:
        program.turn(axes or program.axes, **(to or {}))
    return name


def body(program: Program, returns: str = "x") -> str:
    return "\n".join([*program.lines, f"return {returns}"])


def name_layers(program: Program) -> None:
    for name, layer in program.layers.items():
        layer.name = name


def function(program: Program, parameters: str, returns: str, **fields: Any) -> Callable[..., Any]:
    """A program as a function of its inputs."""
    name_layers(program)
    scope = {**SCOPE, "self": SimpleNamespace(**program.layers, **fields)}
    text = "\n".join(f"    {line}" for line in body(program, returns).split("\n"))
    exec(f"def run({parameters}):\n{text}", scope)
    return scope["run"]


def subclass(program: Program, base: type, parameters: str = "x", returns: str = "x", **options: Any) -> Any:
    """A subclassed model, or a layer of one's own, whose `call` is the program."""
    name_layers(program)
    scope: dict[str, Any] = {**SCOPE, "base": base}
    text = "\n".join(f"        {line}" for line in body(program, returns).split("\n"))
    several = "inputs" if "," in parameters else parameters
    unpack = "" if several == parameters else f"        {parameters} = inputs\n"
    exec(f"class Own(base):\n    def call(self, {several}):\n{unpack}{text}", scope)
    model = scope["Own"](**options)
    for name, layer in program.layers.items():
        setattr(model, name, layer)
    return model


def block(program: Program, grow: Callable[[Program], Any]) -> None:
    """A block: a nested model, or a layer of one's own."""
    inner = program.inner()
    grow(inner)
    shape = tuple(program.sizes[axis] for axis in program.axes if axis != "B")
    own_layer = program.draw.flip(0.3)
    name = f"block{len(program.layers)}"
    if own_layer:
        module = subclass(inner, layers.Layer, name=name)
        inner.quirks.add("layer made of layers")
    else:
        x = keras.Input(shape)
        module = keras.Model(x, function(inner, "x", "x")(x), name=name)
    program.layers[name] = module
    program.places[name] = Place(inner.axes, order=inner.order)
    program.take(name, inner)
    program.line(f"x = self.{name}(x)")


# -- parts -----------------------------------------------------------------------------------------

EVERY = ("BHWC", "BCHW", "BTC", "BCT", "BC")


@part(*EVERY, weight=3)
def activation(p: Program) -> None:
    kind, options = p.draw.choice(
        [
            (layers.ReLU, {}),
            (layers.LeakyReLU, {}),
            (layers.ELU, {}),
            (layers.Activation, {"activation": "gelu"}),
            (layers.Activation, {"activation": "tanh"}),
            (layers.Activation, {"activation": "swish"}),
            (layers.Dropout, {"rate": 0.5}),
            (layers.GaussianNoise, {"stddev": 0.5}),
            (layers.Identity, {}),
            (layers.Rescaling, {"scale": 0.7, "offset": 0.1}),
        ]
    )
    call(p, kind, **options)


@part(*EVERY)
def raw(p: Program) -> None:
    p.line(
        p.draw.choice(("x = ops.relu(x)", "x = ops.tanh(x)", "x = 1.5 * x", "x = x - 0.2", "x = ops.gelu(x)"))
    )


@part(*EVERY, weight=1.5)
def norm(p: Program) -> None:
    first = p.axes in ("BCHW", "BCT")
    axis = 1 if first else -1
    kinds = [(layers.BatchNormalization, {"axis": axis})] * 2 + [(layers.LayerNormalization, {"axis": axis})]
    if not first and p.places_shape:
        kinds += [(layers.GroupNormalization, {"groups": 1}), (layers.GroupNormalization, {"groups": -1})]
    kind, options = p.draw.choice(kinds)
    call(p, kind, **options)


def same(p: Program) -> None:
    """Something that keeps the shape."""
    if p.axes in ("BCHW", "BCT"):
        norm(p)
    elif p.axes == "BHWC" and p.draw.flip(0.7):
        kind = p.draw.choice((layers.Conv2D, layers.SeparableConv2D))
        call(p, kind, p.channels, 3, padding="same")
    else:
        call(p, layers.Dense, p.channels)
    if p.draw.flip(0.5):
        norm(p)
    if p.draw.flip(0.7):
        activation(p)


@part(*EVERY, weight=1.5)
def residual(p: Program) -> None:
    if p.depth > 1:
        return

    def grow(inner: Program) -> None:
        inner.line("s = x")
        same(inner)
        if p.draw.flip(0.4):
            name = inner.add(p.draw.choice((layers.Add, layers.Average))())
            inner.line(f"x = self.{name}([x, s])")
        else:
            inner.line(p.draw.choice(("x = x + s", "x = s + x", "x = ops.add(s, x)")))

    if p.draw.flip(0.5):
        block(p, grow)
    else:
        grow(p)


@part(*EVERY, weight=0.5)
def repeated(p: Program) -> None:
    if p.axes in ("BCHW", "BCT"):
        return
    inner = p.inner()
    same(inner)
    name = p.add(next(iter(inner.layers.values())), calls=2)
    p.line(f"x = self.{name}(x)\nx = self.{name}(ops.relu(x))")


@part("BHWC", weight=4)
def conv(p: Program) -> None:
    out, size = p.draw.size(), p.draw.choice((1, 3))
    stride = 2 if min(p.places_shape) >= 5 and p.draw.flip(0.3) else 1
    padding = "valid" if min(p.places_shape) >= 5 and p.draw.flip(0.3) else "same"
    lost = size - 1 if padding == "valid" else 0
    h, w = (-(-(side - lost) // stride) for side in p.places_shape)
    kind = p.draw.choice((layers.Conv2D,) * 3 + (layers.SeparableConv2D,))
    relu = p.draw.choice((None, None, "relu"))
    call(p, kind, out, size, strides=stride, padding=padding, activation=relu, to={"C": out, "H": h, "W": w})
    if p.draw.flip(0.4):
        norm(p)


@part("BHWC", "BTC", weight=2)
def dense(p: Program) -> None:
    out = p.draw.size()
    call(p, layers.Dense, out, activation=p.draw.choice((None, "relu")), to={"C": out})


@part("BHWC")
def pool(p: Program) -> None:
    h, w = p.places_shape
    if min(h, w) >= 4 and p.draw.flip(0.7):
        call(
            p, p.draw.choice((layers.MaxPooling2D, layers.AveragePooling2D)), 2, to={"H": h // 2, "W": w // 2}
        )
    elif p.draw.flip(0.3):
        call(p, layers.UpSampling2D, 2, to={"H": 2 * h, "W": 2 * w})
    else:
        call(p, layers.ZeroPadding2D, 1, to={"H": h + 2, "W": w + 2})


@part("BHWC", weight=0.7)
def squeeze_and_excite(p: Program) -> None:
    def grow(inner: Program) -> None:
        c = inner.channels
        same(inner)
        first = inner.add(layers.Dense(inner.draw.size(), activation="relu"), "BC")
        second = inner.add(layers.Dense(c, activation="sigmoid"), "BC")
        inner.line(f"g = self.{second}(self.{first}(ops.mean(x, axis=(1, 2))))")
        inner.line("x = x * ops.expand_dims(ops.expand_dims(g, 1), 1)")

    block(p, grow)


@part("BHWC", "BTC", weight=0.5)
def concatenation(p: Program) -> None:
    name = p.add(layers.Dense(p.draw.common), p.axes)
    p.turn(p.axes, C=p.channels + p.draw.common)
    joined = p.add(layers.Concatenate())
    p.line(f"x = self.{joined}([x, self.{name}(x)])")


@part("BHWC", "BTC", weight=0.6)
def turn(p: Program) -> None:
    if p.axes == "BHWC" and p.draw.flip(0.5):
        h, w = p.places_shape
        call(p, layers.Reshape, (h * w, p.channels), axes="BTC", to={"T": h * w})
        return
    axes = {"BHWC": "BCHW", "BTC": "BCT"}[p.axes]
    order = (3, 1, 2) if axes == "BCHW" else (2, 1)
    if p.draw.flip(0.5):
        call(p, layers.Permute, order, axes=axes)
    else:
        p.line(f"x = ops.transpose(x, {(0, *order)})")
        p.turn(axes)


@part("BHWC", "BCHW")
def exchange(p: Program) -> None:
    """Exchange rows and columns."""
    order = (2, 1, 3) if p.axes == "BHWC" else (1, 3, 2)
    how = p.draw.randrange(3)
    p.exchange()
    if how == 0:
        call(p, layers.Permute, order)
    else:
        a, b = (1, 2) if p.axes == "BHWC" else (2, 3)
        p.line(f"x = ops.transpose(x, {(0, *order)})" if how == 1 else f"x = ops.swapaxes(x, {a}, {b})")


@part("BHWC", "BCHW", "BTC", "BCT", weight=0.4)
def reverse(p: Program) -> None:
    """Turn an axis of places around."""
    places = [index for index, axis in enumerate(p.axes) if axis not in "BC"]
    place = p.draw.randrange(len(places))
    before = ":, " * places[place]
    p.line(p.draw.choice((f"x = ops.flip(x, {places[place]})", f"x = x[{before}::-1]")))
    p.reverse(place)


@part("BCHW", "BCT", weight=2)
def turn_back(p: Program) -> None:
    axes = {"BCHW": "BHWC", "BCT": "BTC"}[p.axes]
    call(p, layers.Permute, (2, 3, 1) if axes == "BHWC" else (2, 1), axes=axes)


@part("BTC", weight=2)
def recurrent(p: Program) -> bool | None:
    if p.order and any(against for _, against in p.order):
        # A loop leaves no trace of its steps in a graph of operations.
        return False
    out, both = p.draw.size(), p.draw.flip(0.3)
    layer = p.draw.choice((layers.LSTM, layers.GRU, layers.SimpleRNN))(out, return_sequences=True)
    layer = layers.Bidirectional(layer) if both else layer
    name = p.add(layer)
    p.line(f"x = self.{name}(x)")
    p.turn("BTC", C=out * (1 + both))
    return None


@part("BTC", weight=2)
def attention(p: Program) -> None:
    count = p.draw.choice((1, 2))
    name = p.add(layers.MultiHeadAttention(count, max(1, p.channels // count)))
    p.line(f"a = self.{name}(x, x)")
    p.line(p.draw.choice(("x = x + a", "x = a")))


@part("BTC", weight=2)
def conv1d(p: Program) -> None:
    out = p.draw.size()
    call(p, layers.Conv1D, out, p.draw.choice((1, 3)), padding="same", to={"C": out})


@part("BTC", weight=0.7)
def pool1d(p: Program) -> None:
    t = p.sizes["T"]
    if t >= 4:
        call(p, p.draw.choice((layers.MaxPooling1D, layers.AveragePooling1D)), 2, to={"T": t // 2})


@part("BTC", weight=0.4)
def distributed(p: Program) -> None:
    out = p.draw.size()
    call(p, layers.TimeDistributed, layers.Dense(out), to={"C": out})


@part("BTC", weight=0.2)
def folded(p: Program) -> None:
    t, c, out = p.sizes["T"], p.channels, p.draw.size()
    name = p.add(layers.Dense(out), "(BT)C")
    p.line(
        f"x = ops.reshape(self.{name}(ops.reshape(x, (-1, {c}))), (-1, {t}, {out}))",
        "places folded into the batch",
    )
    p.turn("BTC", C=out)


@part("BC", weight=3)
def dense_vector(p: Program) -> None:
    out = p.draw.size()
    call(p, layers.Dense, out, activation=p.draw.choice((None, "relu")), axes="BC", to={"C": out})


def to_vector(p: Program) -> None:
    """Leave one vector for each image."""
    pooled = {
        "BHWC": (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D),
        "BTC": (layers.GlobalAveragePooling1D,),
    }
    size = p.channels
    for side in p.places_shape:
        size *= side
    if p.axes == "BC":
        return
    if p.axes in ("BCHW", "BCT"):
        axis = tuple(range(2, len(p.axes)))
        p.line(f"x = ops.mean(x, axis={axis})")
        p.turn("BC", C=p.channels)
    elif p.draw.flip(0.4):
        call(p, layers.Flatten, axes="BC", to={"C": size})
    elif p.axes == "BTC" and p.draw.flip(0.4):
        if p.draw.flip(0.5):
            p.line("x = x[:, -1]")
            p.turn("BC", C=p.channels)
        else:
            out = p.draw.size()
            call(p, layers.LSTM, out, axes="BC", to={"C": out})
    else:
        call(p, p.draw.choice(pooled[p.axes]), axes="BC", to={"C": p.channels})


# -- models ----------------------------------------------------------------------------------------


def draw_input(draw: Draw) -> tuple[Program, Signature]:
    form = draw.choice(("BHWC",) * 5 + ("BTC",) * 3 + ("tokens",) * 2 + ("BC",))
    sizes = {axis: draw.size() for axis in ("BTC" if form == "tokens" else form) if axis != "B"}
    if form == "BHWC":
        sizes |= {"H": max(sizes["H"], 4), "W": max(sizes["W"], 4)}
    if form != "tokens":
        program = Program(draw, form, sizes, separator="/")
        return program, Signature(
            ["float"], [tuple(sizes[axis] for axis in form if axis != "B")], [False], form
        )
    program = Program(draw, "BTC", sizes, separator="/")
    words = draw.randint(3, 9)
    call(program, layers.Embedding, words, sizes["C"], mask_zero=draw.flip(0.2))
    return program, Signature([words], [(sizes["T"],)], [False], "BT")


def second_input(p: Program, signature: Signature) -> None:
    """Another input for each image."""
    if p.axes != "BC" or not p.draw.flip(0.3):
        return
    size = p.draw.size()
    name = p.add(layers.Dense(p.channels), "BC")
    p.places.pop(name)  # the image does not pass it
    p.line(f"x = x + self.{name}(y)")
    signature.shapes.append((size,))
    signature.shared.append(False)
    signature.kinds.append("float")


def finish(p: Program, signature: Signature) -> None:
    draw = p.draw
    p.line("h = x")
    if len(signature.kinds) == 1 and draw.flip(0.06):
        classes, size = max(2, draw.size()), draw.size()
        name = p.add(layers.Dense(p.channels), "BC")
        p.places.pop(name)
        p.line(f"y = self.{name}(y)\nx = 3 * ops.matmul(ops.normalize(x), ops.transpose(ops.normalize(y)))")
        signature.kinds.append("float")
        signature.shapes.append((classes, size))
        signature.shared.append(True)
        p.quirks.add("input shared by all images")
    else:
        classes = draw.choice((1, *(max(2, draw.size()) for _ in range(6))))
        signature.end = draw.choice(("none",) * 4 + ("softmax", "sigmoid", "sigmoid"))
        if classes == 1:
            signature.end = draw.choice(("none", "sigmoid"))
        within = signature.end if signature.end != "none" and draw.flip(0.5) else None
        call(p, layers.Dense, classes, activation=within, axes="BC", to={"C": classes})
        if within is None and signature.end != "none":
            how = draw.randrange(3)
            if how == 0:
                p.line(f"x = ops.{signature.end}(x)")
            elif how == 1 and signature.end == "softmax":
                call(p, layers.Softmax)
            else:
                call(p, layers.Activation, signature.end)
    signature.classes = classes
    signature.returns, signature.main = draw.choice(
        [("x", lambda outputs: outputs)] * 6
        + [
            ("[x, h]", lambda outputs: outputs[0]),
            ('{"embedding": h, "logits": x}', lambda outputs: outputs["logits"]),
            ('{"scores": x}', lambda outputs: outputs["scores"]),
        ]
    )


def is_chain(p: Program) -> bool:
    """Whether the program is nothing but layers one after the other."""
    lines = [line for line in p.lines if line != "h = x"]
    return lines == [f"x = self.{name}(x)" for name in p.layers]


def draw_program(draw: Draw) -> tuple[Program, Signature]:
    p, signature = draw_input(draw)
    part.grow(p, draw.randint(1, 4))
    to_vector(p)
    second_input(p, signature)
    part.grow(p, draw.randint(0, 2))
    finish(p, signature)
    return p, signature


def assemble(p: Program, signature: Signature, kind: str, after: str | None = None, extra: Any = None) -> Any:
    """A model of a program: "functional", "sequential" or "subclassed".

    `extra` is a layer to put after the layer named `after`.
    """
    parameters = ", ".join("xyz"[: len(signature.kinds)])
    name_layers(p)
    if kind == "subclassed":
        return subclass(p, keras.Model, parameters, signature.returns)
    inputs = [
        keras.Input(
            shape[1:] if shared else shape, name=name, dtype="float64" if what == "float" else "int64"
        )
        for name, what, shape, shared in zip(
            "xyz", signature.kinds, signature.shapes, signature.shared, strict=False
        )
    ]
    if kind == "sequential":
        return keras.Sequential([*inputs, *p.layers.values()])
    lines, p.lines = p.lines, []
    for line in lines:
        p.lines.append(line)
        if line == f"x = self.{after}(x)":
            p.lines.append("x = self.extra(x)")
    run = function(p, parameters, signature.returns, extra=extra)
    p.lines = lines
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], run(*inputs))
