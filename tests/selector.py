"""A small memory selector: its sizes, random weights, and what it selects by its formula."""

import numpy as np

SIZES = {"in_features": 6, "memory_size": 3, "exogenous_size": 4, "out_features": 5}


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def random_arrays(seed=0, bias=True):
    rng = np.random.default_rng(seed)
    shapes = {
        "memory.weight": (5, 12),
        "selector.0.weight": (4, 6),
        "selector.0.bias": (4,),
        "selector.2.weight": (15, 4),
        "selector.2.bias": (15,),
    }
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
        if bias or name != "selector.2.bias"
    }


def judge(arrays, x, temperature, over):
    """The selection in NumPy and float64, from the weights."""
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    hidden = x @ a["selector.0.weight"].T + a["selector.0.bias"]
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    scores = hidden @ a["selector.2.weight"].T + a.get("selector.2.bias", 0.0)
    weights = softmax(scores.reshape(*x.shape[:-1], 5, 3) / temperature, -1 if over == "slots" else -2)
    return np.einsum("...tm,tme->...te", weights, a["memory.weight"].reshape(5, 3, 4))
