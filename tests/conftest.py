"""Fixtures shared by all tests: one test body runs on every framework, with NumPy as the judge."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

# Before TensorFlow is first imported: its start-up messages are no part of a test's output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


class Framework(ABC):
    """What a test needs to run a formula of the core on one framework's tensors."""

    @abstractmethod
    def asarray(self, array: Any, dtype: Any = None) -> Any: ...

    @abstractmethod
    def gradient(self, function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
        """Gradient of a scalar function of one tensor."""

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array)


class NumPy(Framework):
    """Gradients are central differences, an independent check of the others."""

    def asarray(self, array, dtype=None):
        return np.asarray(array, dtype)

    def gradient(self, function, x, step=1e-6):
        x = np.asarray(x, np.float64)
        gradient = np.empty_like(x)
        for index in np.ndindex(x.shape):
            shift = np.zeros_like(x)
            shift[index] = step
            gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
        return gradient


class Torch(Framework):
    def __init__(self):
        self.torch = pytest.importorskip("torch")

    def asarray(self, array, dtype=None):
        return self.torch.asarray(np.array(array, dtype))

    def gradient(self, function, x):
        x = self.asarray(x).requires_grad_()
        (gradient,) = self.torch.autograd.grad(function(x), x)
        return gradient.numpy()

    def to_numpy(self, array):
        return array.detach().cpu().numpy()


class TensorFlow(Framework):
    def __init__(self):
        self.tf = pytest.importorskip("tensorflow")

    def asarray(self, array, dtype=None):
        return self.tf.constant(np.asarray(array, dtype))

    def gradient(self, function, x):
        x = self.asarray(x)
        with self.tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x).numpy()


@pytest.fixture(params=[NumPy, Torch, TensorFlow], ids=["numpy", "torch", "tensorflow"])
def framework(request) -> Framework:
    return request.param()
