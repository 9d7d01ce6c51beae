"""The judge: explains a case through every class that takes it. Right or refused; all else is a failure."""

from __future__ import annotations

import inspect
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iba_core import Attribution, ClassTarget, Explainer, IBAError, LogitTarget
from iba_core.concepts import ConceptEmbedding, GradCAM, HiResCAM, LayerCAM, locate
from tests.generator.cases import Bench, Face
from tests.generator.reference import Reference

TOLERANCE = 1e-6
SINGLE = 2e-5
"""Of what the library gives in single precision: activation maps and concept maps."""


@dataclass(frozen=True)
class Verdict:
    """What a class of the library said of a case.

    Attributes:
        face: the class, and how it was used.
        outcome: ``"right"``, ``"refused"`` or ``"failed"``.
        text: the reason of a refusal, what is wrong otherwise.
        told: what the library had to be told before it explained, such as ``"data_format"``.
        error: relative error of what is right or wrong.
    """

    face: str
    outcome: str
    text: str = ""
    told: str = ""
    error: float = 0.0


class WrongError(AssertionError):
    """The library gave something else than what is right."""

    def __init__(self, text: str, error: float = np.inf) -> None:
        super().__init__(text)
        self.error = error


def compare(what: str, found: Any, right: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Relative error.

    Raises:
        WrongError: it is too large, or the shape differs.
    """
    found = np.asarray(found)
    if found.shape != right.shape:
        raise WrongError(f"{what} has shape {found.shape}, not {right.shape}")
    if not np.isfinite(found).all():
        raise WrongError(f"{what} is not finite")
    if not right.size:
        return 0.0
    error = float(np.abs(found - right).max() / max(np.abs(right).max(), 1e-12))
    if error > tolerance:
        correlation = np.corrcoef(found.ravel(), right.ravel())[0, 1] if right.size > 1 else np.nan
        raise WrongError(f"{what} differs by {error:.2g} (relative), correlation {correlation:.3f}", error)
    return error


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what has changed between two states."""
    return [name for name in before if before[name] != after[name]]


class Judge:
    """Judges one case.

    Args:
        bench: the case.
        most: of the library's classes and ways to use them, at most so many, drawn at random.
    """

    def __init__(self, bench: Bench, most: int | None = None) -> None:
        self.bench, self.case, self.most = bench, bench.case, most
        self.reference = Reference(bench)
        self.verdicts: list[Verdict] = []

    def run(self) -> list[Verdict]:
        for face, use in self._faces():
            self.verdicts.append(self._verdict(face, use))
        return self.verdicts

    def _faces(self) -> list[tuple[str, Callable[[], float]]]:
        nothing = self.reference.capacity is None
        faces: list[tuple[str, Callable[[], float]]] = [
            ("Explainer, fitted", partial(self._explain, True, False, False)),
            ("Explainer, fitted, without rewrites", partial(self._explain, False, False, True)),
            ("Explainer, loaded", partial(self._explain, True, True, False)),
            ("Explainer, loaded, one image", partial(self._explain, False, True, True)),
            ("Explainer.predict", self._predict),
        ]
        for name, kind, use in self.bench.faces():
            faces.append((name, partial(self._own, kind, use)))
        if self.case.readout_layers:
            faces.append(("IBAReadout", self._readout))
        if not nothing and self.reference.input_shape:
            faces += [(cam.__name__, partial(self._cam, cam)) for cam in (GradCAM, HiResCAM, LayerCAM)]
            if len(self.reference.input_shape) == 2:
                faces.append(("locate", self._locate))
        if self.most is None or len(faces) <= self.most:
            return faces
        kept = sorted(random.Random(self.case.number).sample(range(len(faces)), self.most))
        return [faces[index] for index in kept]

    def _own(self, kind: type, use: Face) -> float:
        """A class of the backend."""
        capacity, losses, *maps = self.asking(kind, use)
        right = self._right(self.reference.capacity)
        errors = [compare("capacity", capacity, right)]
        if losses is not None:
            errors.append(compare("model's losses", losses, self.reference.losses))
        errors += [compare("saliency", each, self.reference.saliency(right)) for each in maps]
        return max(errors)

    def _right(self, right: np.ndarray | None) -> np.ndarray:
        if right is None:
            raise WrongError("explained, although nothing depends on the layer")
        return right

    def _verdict(self, face: str, use: Callable[[], float]) -> Verdict:
        before = self.bench.state()
        verdict = self._judged(face, use)
        changed = differing(before, self.bench.state())
        if face == "IBAReadout":
            # Its network is drawn by the framework's own generator, which the global seed governs.
            changed = [name for name in changed if name != "random state"]
        if changed:
            text = f"changed: {', '.join(changed)}"
            return Verdict(face, "failed", f"{text}; {verdict.outcome}: {verdict.text}")
        return verdict

    def _judged(self, face: str, use: Callable[[], float]) -> Verdict:
        self.told = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                error = use()
        except WrongError as wrong:
            return Verdict(face, "failed", str(wrong), self.told, wrong.error)
        except IBAError as refusal:
            text = str(refusal)
            if "\n" in text or not text:
                return Verdict(face, "failed", f"no single sentence: {text!r}")
            return Verdict(face, "refused", f"{type(refusal).__name__}: {text}")
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "iba_" in frame.filename] or frames
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            return Verdict(face, "failed", f"raw {type(error).__name__} at {where}: {str(error)[:300]}")
        return Verdict(face, "right", "", self.told, error)

    def asking(self, kind: Callable[..., Any], use: Callable[..., Any]) -> Any:
        """What a class of the library gives. Where it asks for an argument, it is told.

        Raises:
            WrongError: it asks for an argument that it does not take.
        """
        signature, place = self.case.signature, self.case.place
        names = "xyz" if self.case.named else range(3)
        shared = tuple(name for name, is_shared in zip(names, signature.shared, strict=False) if is_shared)
        raw = "sigmoid_logits" if signature.classes == 1 else "other"
        activation = raw if signature.end == "none" else signature.end
        answers = {"data_format": place.data_format, "shared": shared, "activation": activation}
        known, told = {*inspect.signature(kind).parameters}, {}
        if kind is Explainer:
            known.add("activation")  # of the target
        if "kwargs" in known:
            known.add("data_format")
        while True:
            try:
                return use(**told)
            except IBAError as refusal:
                new = [name for name in answers if f"{name}=" in str(refusal) and name not in told]
                if not new:
                    raise
                if new[0] not in known:
                    # Classes without this argument take inputs that are marked.
                    if new[0] == "shared" and "iba_core.Shared" in str(refusal):
                        raise
                    raise WrongError(f"asks for {new[0]}=, which {kind.__name__} does not take") from refusal
                told[new[0]] = answers[new[0]]
                self.told = ", ".join(told)

    # -- the classes that all backends share -----------------------------------------------------------

    def _explainer(self, rewrites: bool, **options: Any) -> Explainer:
        settings = self.case.settings
        return Explainer(
            self.bench.adapter(rewrites),
            self.case.layer,
            beta=settings.beta,
            steps=settings.steps,
            samples=settings.samples,
            learning_rate=settings.learning_rate,
            smooth_std=settings.smooth_std,
            **options,
        )

    def _explain(self, rewrites: bool, loaded: bool, alone: bool) -> float:
        """Explain all images, or one alone."""
        return self.asking(Explainer, partial(self._explained, rewrites, loaded, alone))

    def _explained(self, rewrites: bool, loaded: bool, alone: bool, **options: Any) -> float:
        case, reference = self.case, self.reference
        of_target = {name: options.pop(name) for name in ("activation",) if name in options}
        explainer = self._explainer(rewrites, **options)
        batches = [(case.arguments(batch),) for batch in case.batches]
        explainer.fit(batches, progbar=False)
        if loaded:
            with tempfile.TemporaryDirectory() as folder:
                explainer.save(f"{folder}/statistics")
                explainer = self._explainer(rewrites, **options).load(f"{folder}/statistics")
        kind = ClassTarget if case.settings.kind == "class" else LogitTarget
        if alone:
            number = case.number % case.images
            ones, indices = [case.signature.one(case.inputs, number)], [[number]]
        else:
            ones, indices = [case.inputs], [list(range(case.images))]
        errors = []
        for inputs, chosen in zip(ones, indices, strict=True):
            targets = [case.targets[index] for index in chosen]
            found = explainer.explain(
                case.arguments(inputs), kind(np.array(targets), **of_target), seed=case.settings.seed
            )
            errors.append(self._compare(found, self._right(reference.capacity)[chosen]))
            errors.append(compare("model's losses", found.model_losses, reference.losses[:, chosen]))
        return max(errors)

    def _compare(self, found: Attribution, right: np.ndarray) -> float:
        axes = tuple(range(1, right.ndim))
        return max(
            compare("capacity", found.capacity, right),
            compare("saliency", found.saliency, self.reference.saliency(right)),
            compare("bits", found.total_bits, right.sum(axis=axes) / np.log(2)),
        )

    def _predict(self) -> float:
        def use(**options: Any) -> np.ndarray:
            explainer = Explainer(self.bench.adapter(True), self.case.layer, **options)
            return explainer.predict(self.case.arguments(self.case.inputs))

        found = self.asking(Explainer, use)
        if not self.case.independent:
            return 0.0
        return compare("output", found, self.bench.outputs(self.case.inputs))

    def _cam(self, kind: Any) -> float:
        columns = [target if self.case.signature.classes > 1 else 0 for target in self.case.targets]

        def use(**options: Any) -> np.ndarray:
            cam = kind(self.bench.adapter(True), [self.case.layer], **options)
            return cam(self.case.arguments(self.case.inputs), targets=columns)

        maps = self.asking(kind, use)
        right, defined = self.reference.activation_maps(kind.__name__)
        if maps.shape != right.shape:
            compare("map", maps, right)
        return compare("map", maps[defined], right[defined], SINGLE)

    def _locate(self) -> float:
        generator = np.random.default_rng(self.case.number)
        normal = generator.normal(size=self.reference.features.shape[1 + self.reference.channel])
        concept = ConceptEmbedding(normal, bias=0.3)
        inputs = self.case.arguments(self.case.inputs)
        adapter = self.bench.adapter(True)
        found = self.asking(locate, partial(locate, adapter, concept, inputs, self.case.layer))
        right = self.reference.located(normal, 0.3)
        return 0.0 if right is None else compare("probability", found, right, SINGLE)

    def _readout(self) -> float:
        found, maps, weights = self.asking(self.bench.readout_class, self.bench.readout)
        try:
            right = self.reference.readout(weights)
        except ValueError as error:
            raise WrongError(str(error)) from error
        error = compare("capacity", found, right)
        return max(error, compare("saliency", maps, self.reference.saliency(right)))


def reason(text: str) -> str:
    """A message without names and numbers, to count by."""
    text = re.sub(r"'[^']*'", "'...'", text)
    text = re.sub(r"\([\d, ]*\)|\[[\d, .]*\]", "(...)", text)
    return re.sub(r"\d[\d.e+-]*", "N", text)[:160]
