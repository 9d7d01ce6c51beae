"""Everything that must be as before once a call has ended, however it has ended."""

from __future__ import annotations

import copy
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from iba_core.framework.allocator import c_library_setting

PLAIN = (type(None), bool, int, float, complex, str, bytes)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is not as before, a few words each."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {str(before.get(name))[:60]} -> {str(after.get(name))[:60]}" for name in names]


def process_state(backend: Any) -> dict[str, Any]:
    """Settings of the process, of Python and of a framework."""
    state = {
        "random": random.getstate(),
        "NumPy's random state": _content(np.random.get_state()),
        "NumPy's error handling": np.geterr(),
        "filters of warnings": [*map(str, warnings.filters)],
        "environment": dict(os.environ),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "exception hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "folder": os.getcwd(),
        "threads": threading.active_count(),
        # The setting itself cannot be read, but it takes this function to change it.
        "allocator": c_library_setting.cache_info().currsize,
    }
    return state | (_torch_process() if backend.name == "torch" else _tensorflow_process())


def _torch_process() -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.nn.modules import module as modules
    from torch.utils import _python_dispatch

    backends = torch.backends
    return {
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (
            [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
            torch.is_autocast_cache_enabled(),
        ),
        "fused attention": (
            backends.mha.get_fastpath_enabled(),
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
        ),
        "precision of matrix products": (
            torch.get_float32_matmul_precision(),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
        ),
        "algorithms": (
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.cudnn.enabled,
            backends.mkldnn.enabled,
            torch.are_deterministic_algorithms_enabled(),
            torch.get_num_threads(),
        ),
        "default dtype": torch.get_default_dtype(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "PyTorch's random state": torch.get_rng_state().numpy().tobytes(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "flags of modes": [item for item in vars(_python_dispatch).items() if item[0].startswith("_is_in_")],
        "nn.Module": _ids(nn.Module),
        "torch.Tensor": _ids(torch.Tensor),
        "functional": _ids(torch.nn.functional),
        "global hooks": [
            len(value)
            for name, value in vars(modules).items()
            if name.startswith("_global") and hasattr(value, "__len__")
        ],
        "compiler": _stance(),
    }


def _stance() -> str:
    frames = sys.modules.get("torch._dynamo.eval_frame")
    return "" if frames is None else str(getattr(frames, "_stance", ""))


def _tensorflow_process() -> dict[str, Any]:
    import keras
    import tensorflow as tf
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context

    return {
        "Keras' settings": (
            keras.config.floatx(),
            keras.config.image_data_format(),
            keras.config.dtype_policy().name,
            keras.config.epsilon(),
            keras.config.is_traceback_filtering_enabled(),
        ),
        "Keras' state": sorted(
            name
            for name, value in vars(global_state.GLOBAL_STATE_TRACKER).items()
            if value is not None and value != []
        ),
        "eager": (tf.executing_eagerly(), tf.inside_function(), tf.config.functions_run_eagerly()),
        "session": tf.compat.v1.get_default_session(),
        "graph": type(tf.compat.v1.get_default_graph()).__name__,
        "placement": tf.config.get_soft_device_placement(),
        "TensorFlow's random state": (
            context.global_seed(),
            context.context()._rng.getstate() if context.context()._rng is not None else None,
        ),
        **{
            f"{kind.__module__}.{kind.__qualname__}": _ids(kind)
            for kind in (keras.layers.Layer, keras.Model, keras.Operation, keras.KerasTensor)
        },
        "tf.Graph": _ids(tf.Graph),
        "tf.Operation": _ids(tf.Operation),
        "tf.Tensor": _ids(tf.Tensor),
    }


def _ids(thing: Any) -> dict[str, int]:
    # Descriptors, not what they give, which may be made anew each time.
    return {name: id(value) for name, value in list(vars(thing).items()) if name not in _COUNTED}


_COUNTED = {"__abstractmethods__", "_abc_impl", "__annotations__", "__weakref__", "__dict__"}
"""Attributes of classes that Python itself may set."""


def model_state(backend: Any, model: Any, x: np.ndarray) -> dict[str, Any]:
    """Hooks, flags, parameters, gradients, buffers and attributes of a model, and its outputs."""
    return _torch_model(model, x) if backend.name == "torch" else _keras_model(model, x)


def _torch_model(model: Any, x: np.ndarray) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[name] = (id(module), type(module), id(type(module).forward), id(type(module).__call__))
        state |= {f"{name}.{key}": _content(value) for key, value in vars(module).items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = copy.deepcopy(model).eval()(torch.from_numpy(x))
    state["outputs"] = outputs.numpy().tobytes()
    return state


_traced: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _keras_model(model: Any, x: np.ndarray) -> dict[str, Any]:
    # Python's side of the layers is compared below, so that one trace serves: it takes a tenth of the time.
    if model not in _traced:
        import tensorflow as tf

        reference = weakref.ref(model)
        _traced[model] = tf.function(lambda inputs: reference()(inputs, training=False))
    state: dict[str, Any] = {"outputs": _traced[model](x).numpy().tobytes()}
    for layer in [model, *model.layers]:
        name = layer.name
        state[name] = (id(layer), type(layer), id(type(layer).call), id(type(layer).__call__))
        state[f"{name} flags"] = (
            layer.trainable,
            layer.built,
            layer.supports_masking,
            layer.dtype_policy.name,
        )
        state[f"{name} nodes"] = (len(layer._inbound_nodes), len(layer._outbound_nodes))
        state[f"{name} losses"] = len(layer.losses)
        state |= {
            f"{name}.{key}": value if isinstance(value, PLAIN) else id(value)
            for key, value in vars(layer).items()
        }
    for variable in model.variables:
        state[f"variable {variable.path}"] = (id(variable), variable.trainable, variable.numpy().tobytes())
    return state


def _content(value: Any) -> Any:
    """Something that equals what a later look gives if nothing has changed."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return [(key if isinstance(key, PLAIN) else id(key), _content(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if hasattr(value, "requires_grad"):
        gradient = None if value.grad is None else (id(value.grad), value.grad.numpy().tobytes())
        array = value.detach().numpy()
        return id(value), value.data_ptr(), value.requires_grad, value._version, gradient, array.tobytes()
    return id(value)


def same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    """Whether two lists of arrays and texts are the same, bit for bit."""
    return [*map(_content, one)] == [*map(_content, other)]
