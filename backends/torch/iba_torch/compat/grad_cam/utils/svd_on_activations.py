"""Principal components of the channels of activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iba_core.concepts.activation_maps import component_with_positive_peak, unoriented_component
from iba_core.errors import MissingDependencyError


def get_2d_projection(activation_batch: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Project the channels (B, C, *places) onto their first principal component; NaN counts as 0.

    The sign of the component is left open. `iba_torch.concepts.EigenCAM` chooses it by the evidence.

    Example:
        >>> np.abs(get_2d_projection(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]])))
        array([[[1., 1.]]], dtype=float32)
    """
    return np.asarray(unoriented_component(_without_nan(activation_batch)), dtype=np.float32)


def get_2d_projection_with_sign_correction(
    activation_batch: npt.NDArray[np.floating],
) -> npt.NDArray[np.float32]:
    """`get_2d_projection` with the sign for which the component is positive where it is largest."""
    return np.asarray(component_with_positive_peak(_without_nan(activation_batch)), dtype=np.float32)


def get_2d_projection_kernel(
    activation_batch: npt.NDArray[np.floating], kernel: str = "sigmoid", gamma: float | None = None
) -> npt.NDArray[np.float32]:
    """Project the channels onto the first component of a kernel PCA, see `sklearn.decomposition.KernelPCA`.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import KernelPCA
    except ImportError as error:
        raise MissingDependencyError("a kernel PCA needs scikit-learn: pip install scikit-learn") from error
    components = []
    for image in _without_nan(activation_batch):
        vectors = image.reshape(len(image), -1).T
        pca = KernelPCA(n_components=1, kernel=kernel, gamma=gamma)
        components.append(pca.fit_transform(vectors - vectors.mean(axis=0)).reshape(image.shape[1:]))
    return np.asarray(components, dtype=np.float32)


def _without_nan(activations: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.where(np.isnan(activations), np.zeros_like(activations), activations)
