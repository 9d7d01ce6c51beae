"""The function that an output ends in."""

from __future__ import annotations

import re
from typing import Any

import torch

from iba_core.framework.adapter import Activation

_SAME_NUMBERS = re.compile(
    r"(View|UnsafeView|ReshapeAlias|Squeeze|Unsqueeze|ToCopy|Clone|Alias|Expand|Select|Slice|Transpose|Permute"
    r"|T|Cat|Stack|Split|Unbind|Index|AsStrided)Backward\d*"
)


def last_activation(node: Any) -> Activation | None:
    """The function that a tensor ends in, apart from operations that only move numbers or cast them.

    Args:
        node: the tensor's `grad_fn`.

    Returns:
        None where PyTorch does not know the operation, such as one of an extension.

    Example:
        >>> x = torch.zeros(2, 3, requires_grad=True)
        >>> last_activation(torch.sigmoid(x).squeeze().grad_fn), last_activation((x + 1).grad_fn)
        ('sigmoid', 'other')
    """
    if node is None or isinstance(node, torch.autograd.function.BackwardCFunction):
        return None
    name = node.name()
    if name.startswith("SigmoidBackward"):
        return "sigmoid"
    if name.startswith("SoftmaxBackward"):
        return "softmax"
    if not _SAME_NUMBERS.fullmatch(name):
        return "other" if re.fullmatch(r"[A-Z]\w*Backward\d+", name) else None
    found = {last_activation(previous) for previous, _ in node.next_functions if previous is not None}
    return found.pop() if len(found) == 1 else None
