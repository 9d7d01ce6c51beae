"""Writes the weights that torch_concepts 1.0.0a1 draws from a seed, and what its selector answers.

The package (`pip install pytorch-concepts==1.0.0a1 pandas`, and torchvision) needs PyTorch Lightning, which
nothing else here does, so the tests compare with this record instead. To make it again, with it installed:

    python record_selector.py torch_concepts_1_0_0a1.npz
"""

import sys

import numpy as np
import torch
from torch_concepts.nn import SelectorZU


def main(path: str) -> None:
    torch.manual_seed(7)
    selector = SelectorZU(in_features=6, memory_size=4, exogenous_size=3, out_features=5, temperature=0.5)
    arrays = {name: value.numpy() for name, value in selector.state_dict().items()}
    arrays["input"] = np.random.RandomState(7).standard_normal((8, 6)).astype(np.float32)
    x = torch.from_numpy(arrays["input"])
    arrays["soft"] = selector(input=x, sampling=False).detach().numpy()
    torch.manual_seed(11)
    hard = selector(input=x, sampling=True)
    arrays["hard"] = hard.detach().numpy()
    (hard**2).sum().backward()
    arrays["hard.gradient"] = selector.memory.weight.grad.numpy()
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
