"""Writes what hybrid_learning 2.0 answers: losses, metrics, embeddings, a detection model and its file.

The package (https://github.com/continental/hybrid_learning, commit 5cd3937) is on no registry and needs old
versions of its requirements, so the tests compare with this record instead. It was made with the code of
the classes named here, without its data handles. To make it again, in a checkout of the package:

    python record_hybrid_learning.py hybrid_learning_2_0.npz hybrid_learning_2_0.pt
"""

import sys

import numpy as np
import torch
from hybrid_learning.concepts.models import ConceptDetectionModel2D, ConceptEmbedding
from hybrid_learning.concepts.train_eval import kpis


def losses(arrays: dict[str, np.ndarray]) -> None:
    rng = np.random.RandomState(7)
    arrays["outputs"] = rng.uniform(0.02, 0.98, (3, 1, 5, 6)).astype(np.float32)
    binary = (rng.uniform(size=(3, 1, 5, 6)) > 0.6).astype(np.float32)
    arrays["binary"] = binary
    arrays["soft"] = np.where(rng.uniform(size=binary.shape) > 0.5, binary, binary * 0.25).astype(np.float32)
    outputs = torch.from_numpy(arrays["outputs"])
    functions = {
        "BalancedBCELoss": kpis.BalancedBCELoss(),
        "BalancedBCELoss(0.9)": kpis.BalancedBCELoss(0.9),
        "BalancedBCELoss(0.9, 'sum', True)": kpis.BalancedBCELoss(0.9, "sum", True),
        "BalancedPenaltyReducedFocalLoss": kpis.BalancedPenaltyReducedFocalLoss(),
        "IoU": kpis.IoU(),
        "Net2VecLoss": kpis.Net2VecLoss(),
        "Net2VecLoss(0.9)": kpis.Net2VecLoss(0.9),
        "TverskyLoss": kpis.TverskyLoss(),
    }
    for masks in ("binary", "soft"):
        targets = torch.from_numpy(arrays[masks])
        for name, function in functions.items():
            arrays[f"{name} of {masks}"] = function(outputs, targets).numpy()
        metric = kpis.SetIoU()
        for i in range(3):
            metric(outputs[i], targets[i])
        arrays[f"SetIoU of {masks}"] = metric.value_and_reset().numpy()


def embeddings(arrays: dict[str, np.ndarray]) -> None:
    rng = np.random.RandomState(8)
    arrays["weights"] = rng.standard_normal((3, 1, 4, 2, 3)) + 0.5
    arrays["biases"], arrays["scaling"] = rng.standard_normal(3), np.array([2.0, 0.5, 1.5])
    planes = [
        ConceptEmbedding(
            state_dict={"weight": w, "bias": np.array([b])},
            kernel_size=(2, 3),
            normal_vec_name="weight",
            bias_name="bias",
            scaling_factor=s,
            concept_name="face",
        )
        for w, b, s in zip(arrays["weights"], arrays["biases"], arrays["scaling"], strict=True)
    ]

    def keep(name: str, plane: ConceptEmbedding) -> None:
        arrays[f"{name}.normal_vec"] = plane.normal_vec
        arrays[f"{name}.numbers"] = np.array([plane.support_factor, plane.scaling_factor], dtype=np.float64)

    for method in ("scale", "normalize", "unique", "unique_upper_sphere", "to_pos_scaling", "forget_scaling"):
        keep(method, getattr(planes[0], method)())
    for plane in planes:
        plane.meta_info["concept"] = type("Concept", (), {"name": "face"})()
    for method in ("mean", "mean_by_distance", "mean_by_angle"):
        keep(method, getattr(ConceptEmbedding, method)(planes))
    normal_vec, *numbers = ConceptEmbedding.variance(planes)
    arrays["variance.normal_vec"], arrays["variance.numbers"] = normal_vec, np.array(numbers)
    arrays["distance"] = np.array([plane.distance(arrays["weights"][1]) for plane in planes])


def detection(arrays: dict[str, np.ndarray], file: str) -> None:
    torch.manual_seed(7)
    model = ConceptDetectionModel2D(in_channels=4, kernel_size=(2, 3), ensemble_count=2, concept_name="face")
    arrays.update({name: value.numpy() for name, value in model.state_dict().items()})
    arrays["maps"] = np.random.RandomState(9).standard_normal((2, 4, 6, 7)).astype(np.float32)
    arrays["heatmaps"] = model(torch.from_numpy(arrays["maps"])).detach().numpy()
    model.to_embedding()[1].save(file)


def main(path: str, file: str) -> None:
    arrays: dict[str, np.ndarray] = {}
    losses(arrays)
    embeddings(arrays)
    detection(arrays, file)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
