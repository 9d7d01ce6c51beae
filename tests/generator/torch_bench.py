"""PyTorch before the judge: a model with hooks, and the library's classes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from iba_torch import IBA, IBAReadout, TorchAdapter
from tests.generator.cases import Bench, Case, Face, Inputs, draw_case
from tests.generator.programs import Draw, Place
from tests.generator.reference import TINY, class_loss
from tests.generator.torch_models import Checkpoints, draw_model, source


def contiguous_gradient(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    """Make the gradient of an output contiguous: PyTorch's own for one row is wrong otherwise."""
    if output.requires_grad:
        output.register_hook(torch.Tensor.contiguous)


def log(x: torch.Tensor) -> torch.Tensor:
    """Of a probability. Where the bottleneck comes after the sigmoid, noise can leave less than 0."""
    return x.clamp_min(TINY).log()


OPS = SimpleNamespace(
    log=log,
    logsumexp=lambda x: torch.logsumexp(x, -1),
    softplus=lambda x: -torch.nn.functional.logsigmoid(-x),
)


class TorchBench(Bench):
    backend = "torch"

    def __init__(self, case: Case, model: nn.Module) -> None:
        super().__init__(case)
        self.own = copy.deepcopy(model).eval()
        for module in self.own.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.register_forward_hook(contiguous_gradient)
        self._model = model

    @classmethod
    def draw(cls, number: int) -> TorchBench:
        for attempt in range(100):
            draw = Draw(1000 * number + attempt)
            model, program, signature = draw_model(draw)
            parameters = ", ".join("xyz"[: len(signature.kinds)])
            text = f"{source(program, 'Net', parameters, signature.returns)}\n{model}"
            case = draw_case(draw, number, program, signature, text)
            if draw.flip(0.15):
                model.train()
            bench = cls(case, model)
            if bench.can_be_trained():
                return bench
        raise AssertionError("no network can be trained")

    @property
    def model(self) -> nn.Module:
        return self._model

    def can_be_trained(self) -> bool:
        """Whether autograd takes the program: not what is written in place and needed by it."""
        args = self.tensors(self.case.inputs)
        try:
            with checkpoints_off():
                main = self.case.signature.main(self.call(self.own, args))
                main.sum().backward()
        except (RuntimeError, ValueError):
            return False
        self.own.zero_grad()
        if not torch.isfinite(main).all():
            return False
        one = self.case.signature.one(self.case.inputs, 0)
        try:
            self.slope(one, self.features(one, self.case.layer), class_loss(self, self.case.targets[0]))
        except RuntimeError:
            return False
        return True

    def tensors(self, inputs: Inputs) -> Any:
        return tuple(torch.from_numpy(np.array(x)) for x in inputs)

    def call(self, model: nn.Module, tensors: Any) -> Any:
        # The judge's own passes leave the random state alone.
        with torch.random.fork_rng([], enabled=model is self.own):
            return self._called(model, tensors)

    def _called(self, model: nn.Module, tensors: Any) -> Any:
        if self.case.named:
            return model(**dict(zip("xyz", tensors, strict=False)))
        return model(*tensors)

    @contextmanager
    def replacing(self, layer: str, rows: int, z: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
        """Context in which the output of a layer is kept, and replaced where there is a z."""
        name, _, number = layer.partition(":")
        place, wanted = self.case.program.places[name], int(number or 0)
        found: list[torch.Tensor] = []
        calls = 0

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != wanted + 1:
                return None
            first = output[0] if isinstance(output, tuple) else output
            found.append(to_batch_first(first.detach().clone(), place, rows))
            if z is None:
                return None
            new = from_batch_first(z, place)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.own.get_submodule(name).register_forward_hook(hook)
        try:
            with checkpoints_off():
                yield found
        finally:
            handle.remove()
            if calls != place.calls:
                raise AssertionError(f"{layer!r} ran {calls} times, not {place.calls}")

    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        with self.replacing(layer, len(inputs[0])) as found:
            self.call(self.own, self.tensors(inputs))
        return found[0].numpy()

    def outputs(self, inputs: Inputs) -> np.ndarray:
        with checkpoints_off():
            return self.case.signature.main(self.call(self.own, self.tensors(inputs))).detach().numpy()

    def slope(
        self, inputs: Inputs, z: np.ndarray, loss: Callable[[Any, Any], Any]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        leaf = torch.from_numpy(np.array(z)).requires_grad_()
        with self.replacing(self.case.layer, len(z), leaf.clone()):
            outputs = self.case.signature.main(self.call(self.own, self.tensors(inputs)))
        losses = loss(outputs, OPS)
        (slope,) = torch.autograd.grad(losses.sum(), leaf, allow_unused=True)
        return None if slope is None else (losses.detach().numpy(), slope.numpy())

    def state(self) -> dict[str, Any]:
        modules = dict(self._model.named_modules())
        return {
            "random state": (
                torch.get_rng_state().numpy().tobytes(),
                random.getstate(),
                repr(np.random.get_state()),
            ),
            "weights or buffers": {
                name: value.detach().numpy().tobytes() for name, value in self._model.state_dict().items()
            },
            "versions of weights": [p._version for p in self._model.parameters()],
            "gradients": [p.grad is None for p in self._model.parameters()],
            "flags": [
                *(module.training for module in modules.values()),
                *(p.requires_grad for p in self._model.parameters()),
            ],
            "hooks or attributes": {
                name: {
                    key: value
                    if key == "forward"
                    else len(value)
                    if hasattr(value, "__len__") and "hook" in key
                    else None
                    for key, value in vars(module).items()
                    if key != "last"
                }
                | {"last": id(vars(module).get("last"))}
                for name, module in modules.items()
            },
            "torch's own classes": (nn.Module.__call__, nn.Module.forward, torch.is_grad_enabled()),
        }

    def adapter(self, rewrites: bool) -> TorchAdapter:
        return TorchAdapter(self._model, rewrites=rewrites)

    # -- the library's classes -----------------------------------------------------------------------

    def faces(self) -> Iterator[tuple[str, type, Face]]:
        yield "IBA, estimated", IBA, partial(self.iba, False)
        yield "IBA, loaded", IBA, partial(self.iba, True)

    def iba(self, loaded: bool, **further: Any) -> tuple[np.ndarray, ...]:
        case, settings = self.case, self.case.settings
        name, _, number = case.layer.partition(":")
        options: dict[str, Any] = {
            "sigma": settings.smooth_std,
            "beta": settings.beta,
            "optimization_steps": settings.steps,
            "lr": settings.learning_rate,
            "batch_size": settings.samples,
            "call": int(number) if number else None,
            **further,
        }
        layer = self._model.get_submodule(name)
        iba = IBA(layer, **options)
        try:
            iba.estimate(self._model, [(self.arguments(batch),) for batch in case.batches])
            if loaded:
                state = iba.state_dict()
                iba.detach()
                iba = IBA(layer, **options)
                iba.load_state_dict(state)
            shared = case.signature.shared
            tensors = self.tensors(case.inputs)
            own = [x for x, is_shared in zip(tensors, shared, strict=True) if not is_shared]
            targets = torch.tensor(case.targets)

            def loss(given: Any) -> torch.Tensor:
                rows = iter(given if isinstance(given, tuple) else (given,))
                whole = [x if is_shared else next(rows) for x, is_shared in zip(tensors, shared, strict=True)]
                outputs = case.signature.main(self.call(self._model, whole))
                copies = targets.repeat_interleave(len(outputs) // len(targets))
                return torch_loss(case, outputs, copies)

            given = own[0] if len(own) == 1 else tuple(own)
            found = [
                iba.analyze(given, loss, mode=mode, seed=settings.seed)
                for mode in ("capacity", *["saliency"] * loaded)
            ]
        finally:
            iba.detach()
        nats, *maps = found if case.images > 1 else [each[None] for each in found]
        return nats, iba.model_losses, *maps

    def arguments(self, inputs: Inputs) -> Any:
        tensors = self.tensors(inputs)
        if self.case.named:
            return dict(zip("xyz", tensors, strict=False))
        return tensors[0] if len(tensors) == 1 else tensors

    readout_class = IBAReadout

    def readout(self, **options: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        case, weights = self.case, []
        generator = np.random.default_rng(case.number)
        sigma = case.settings.smooth_std
        readout = IBAReadout(case.layer, case.readout_layers, self._model, sigma=sigma, **options)
        try:
            readout.estimate(self._model, [(self.arguments(batch),) for batch in case.batches])
            with torch.no_grad():
                for weight in readout.network.parameters():
                    fan = weight.shape[1] if weight.ndim > 1 else 1
                    value = generator.normal(size=weight.shape) / fan**0.5
                    weight.copy_(torch.from_numpy(value))
                    weights.append(value[..., 0] if value.ndim == 3 else value)
            args = self.arguments(case.inputs)
            nats, maps = (self._analysed(readout, args, mode) for mode in ("capacity", "saliency"))
        finally:
            readout.detach()
        return nats, maps, weights

    def _analysed(self, readout: IBAReadout, args: Any, mode: str) -> np.ndarray:
        # The network draws the noise from the framework's own generator, but the capacity depends on none.
        found = readout.analyze(args, mode=mode)
        return found if self.case.images > 1 else found[None]


@contextmanager
def checkpoints_off() -> Iterator[None]:
    Checkpoints.on = False
    try:
        yield
    finally:
        Checkpoints.on = True


def torch_loss(case: Case, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Losses of each row."""
    end, single = case.signature.end, case.signature.classes == 1
    chosen = outputs[:, 0] if single else outputs.gather(1, targets[:, None])[:, 0]
    if case.settings.kind == "logit":
        return -chosen
    if end == "none" and single:
        return -nn.functional.logsigmoid(torch.where(targets == 0, -chosen, chosen))
    if end == "none":
        return outputs.logsumexp(1) - chosen
    if end == "softmax":
        return log(outputs).logsumexp(1) - log(chosen)
    return -log(torch.where(targets == 0, 1 - chosen, chosen) if single else chosen)


def to_batch_first(x: torch.Tensor, place: Place, images: int) -> torch.Tensor:
    if place.axes.startswith("("):
        return x.reshape(images, -1, x.shape[-1])
    return x.movedim(place.axes.index("B"), 0)


def from_batch_first(x: torch.Tensor, place: Place) -> torch.Tensor:
    if place.axes.startswith("("):
        return x.reshape(-1, x.shape[-1])
    return x.movedim(0, place.axes.index("B"))
