"""The names of hybrid_learning, against what the package has answered (tests/data) and against PyTorch."""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import concepts as core
from iba_core.errors import InputError, LayerError, StateError
from iba_torch.compat.hybrid_learning import concepts
from iba_torch.compat.hybrid_learning.concepts.analysis import data_for_concept_model
from iba_torch.compat.hybrid_learning.concepts.models import (
    ConceptDetection2DTrainTestHandle,
    ConceptDetectionModel2D,
    ConceptEmbedding,
    ConceptSegmentationModel2D,
)
from iba_torch.compat.hybrid_learning.concepts.models.model_extension import ModelStump
from iba_torch.compat.hybrid_learning.concepts.train_eval import kpis
from iba_torch.compat.hybrid_learning.datasets import DataTriple
from iba_torch.compat.hybrid_learning.datasets.transforms import same_padding
from iba_torch.compat.hybrid_learning_v1.concepts.embeddings import ConceptEmbedding as EarlyEmbedding
from iba_torch.compat.hybrid_learning_v1.concepts.models import (
    ConceptDetection2DTrainTestHandle as EarlyHandle,
)
from iba_torch.compat.hybrid_learning_v1.concepts.models import ConceptDetectionModel2D as EarlyModel
from iba_torch.concepts import ConceptDetectionModel2D as OwnModel

DATA = Path(__file__).parents[1] / "data"
FILE = DATA / "hybrid_learning_2_0.pt"


@pytest.fixture(scope="module")
def record():
    return dict(np.load(DATA / "hybrid_learning_2_0.npz"))


class Blobs(torch.utils.data.Dataset):
    """Images with a bright square, and where it is."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        mask = torch.zeros(1, 12, 12)
        mask[:, 2 + index % 3 : 7 + index % 3, 3:8] = 1
        return 0.2 * torch.rand(3, 12, 12, generator=generator) + mask, mask


@pytest.fixture
def concept():
    data = Blobs()
    return concepts.SegmentationConcept2D(
        name="face", data=DataTriple(train=data, val=data, test=data), rel_size=0.25
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(864, 2)
    )


# -- losses and metrics --------------------------------------------------------------------------------


def test_losses_and_metrics_are_those_of_the_package(record):
    outputs = torch.from_numpy(record["outputs"])
    judged = [name.rsplit(" of ", 1) for name in record if " of " in name]
    assert len(judged) == 18
    for call, masks in judged:
        targets = torch.from_numpy(record[masks])
        name, _, arguments = call.partition("(")
        function = getattr(kpis, name)(*ast.literal_eval(f"({arguments.rstrip(')')},)") if arguments else ())
        value = function(outputs, targets)
        if name == "SetIoU":
            value = function.value_and_reset()
        expected = torch.from_numpy(record[f"{call} of {masks}"])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=f"{call} of {masks}")


@pytest.mark.parametrize("from_logit", [False, True])
def test_the_cross_entropy_of_soft_masks_is_that_of_pytorch(from_logit):
    inputs, targets = torch.rand(2, 4), torch.tensor([[0.0, 0.3, 0.7, 1.0]] * 2)
    weight = torch.where(targets > 0, 0.9, 0.1)
    judge = functional.binary_cross_entropy_with_logits if from_logit else functional.binary_cross_entropy
    loss = kpis.BalancedBCELoss(0.9, "none", from_logit)
    torch.testing.assert_close(
        loss(inputs=inputs, targets=targets), judge(inputs, targets, weight, reduction="none")
    )
    assert loss.reduction == "none"


def test_metrics_take_labels_and_set_iou_runs_over_calls():
    outputs, labels = torch.tensor([[0.9, 0.8]]), torch.tensor([[1, 0]])
    assert kpis.IoU(smooth=0)(outputs=outputs, labels=labels) == 0.5
    metric = kpis.SetIoU(smooth=0)
    assert metric.value() == 1
    assert metric(outputs=outputs, labels=labels) == 0.5
    assert metric(outputs=torch.tensor(0.9), labels=torch.tensor(1.0)) == 1
    metric.update(outputs=outputs, labels=torch.ones(1, 1))
    assert metric.value_and_reset() == pytest.approx(4 / 5)
    assert metric.value() == 1
    assert metric.smooth_division(0, 0) == kpis.IoU().smooth_division(0, 0) == 1


def test_set_iou_pairs_heatmaps_with_masks_image_by_image():
    masks = (torch.rand(3, 4, 5) > 0.5).float()
    metric = kpis.SetIoU()
    assert metric(masks[:, None], masks) == 1
    with pytest.raises(InputError, match="targets has shape"):
        kpis.IoU()(masks[:, None], masks)


# -- embeddings ---------------------------------------------------------------------------------------


def recorded_planes(record, kind=ConceptEmbedding):
    return [
        kind(
            state_dict={"weight": w, "bias": np.array([b])},
            kernel_size=(2, 3),
            normal_vec_name="weight",
            bias_name="bias",
            scaling_factor=s,
            concept_name="face",
            note="kept",
        )
        for w, b, s in zip(record["weights"], record["biases"], record["scaling"], strict=True)
    ]


def test_embeddings_are_converted_and_averaged_as_in_the_package(record):
    planes = recorded_planes(record)

    def check(name, plane):
        assert type(plane) is ConceptEmbedding
        assert plane.note == "kept"
        np.testing.assert_allclose(plane.normal_vec, record[f"{name}.normal_vec"], rtol=1e-10, err_msg=name)
        numbers = [plane.support_factor, plane.scaling_factor]
        np.testing.assert_allclose(numbers, record[f"{name}.numbers"], rtol=1e-10, err_msg=name)
        np.testing.assert_array_equal(plane.state_dict["weight"], plane.normal_vec)

    for method in ("scale", "normalize", "unique", "unique_upper_sphere", "to_pos_scaling", "forget_scaling"):
        check(method, getattr(planes[0], method)())
    for method in ("mean", "mean_by_distance", "mean_by_angle"):
        check(method, getattr(ConceptEmbedding, method)(planes))
    normal_vec, *numbers = ConceptEmbedding.variance(planes)
    np.testing.assert_allclose(normal_vec, record["variance.normal_vec"], rtol=1e-9)
    np.testing.assert_allclose(numbers, record["variance.numbers"], rtol=1e-9)
    distances = [plane.distance(record["weights"][1]) for plane in planes]
    assert all(isinstance(distance, float) for distance in distances)
    np.testing.assert_allclose(distances, record["distance"], rtol=1e-12)
    first = ConceptEmbedding.first(planes)
    assert first == planes[0]
    assert first is not planes[0]


def test_concepts_are_not_mixed(record):
    planes = recorded_planes(record)
    other = ConceptEmbedding(**{**planes[1].settings, "concept_name": "wheel"})
    with pytest.raises(InputError, match=r"concepts \['face', 'wheel'\]"):
        ConceptEmbedding.mean([planes[0], other])


def test_both_constructors_give_one_hyperplane():
    late = ConceptEmbedding({"w": [3.0, 4.0], "b": [-10.0]}, (1,), "w", "b", 2.0, concept_name="face")
    early = EarlyEmbedding([3.0, 4.0], 0.4, 2.0, None, None, "face", "fc")
    assert late == early == ConceptEmbedding(normal_vec=[3.0, 4.0], support_factor=0.4, scaling_factor=2.0)
    assert (late.kernel_size, late.layer_id, early.layer_id) == ((1,), None, "fc")
    assert ConceptEmbedding(**early.settings) == late
    assert type(early.normalize()) is EarlyEmbedding
    assert late.concept is late.main_model is late.model_stump is None
    assert copy.deepcopy(late) == late
    with pytest.raises(AttributeError, match="unheard_of"):
        _ = late.unheard_of
    with pytest.raises(InputError, match="normal_vec_name='weight' must be one of"):
        ConceptEmbedding({"w": [1.0]}, (1,), "weight")
    with pytest.raises(InputError, match="neither state_dict nor normal_vec"):
        ConceptEmbedding()


def test_an_embedding_without_bias_has_the_bias_zero():
    plane = ConceptEmbedding({"w": [3.0, 4.0]}, (1,), "w")
    assert plane.bias == plane.support_factor == 0
    assert plane.normalize().scaling_factor == 5


def test_names_follow_from_the_objects(network, concept):
    stump = ModelStump(network, stump_head="1")
    plane = ConceptEmbedding({"w": [1.0], "b": 0.0}, (1,), "w", "b", concept=concept, model_stump=stump)
    assert (plane.concept_name, plane.layer_id, plane.main_model) == ("face", "1", network)


# -- files ----------------------------------------------------------------------------------------------


def test_a_file_of_the_package_is_read(record, tmp_path):
    plane = ConceptEmbedding.load(FILE)
    np.testing.assert_array_equal(plane.state_dict["weight"], record["concept_layer_1.weight"])
    assert plane.normal_vec.shape == (1, 4, 2, 3)
    assert (plane.concept_name, plane.layer_id, plane.use_bias) == ("face", "features.5", True)
    model = ConceptDetectionModel2D.from_embedding(plane, ensemble_count=1)
    maps = torch.from_numpy(record["maps"])
    torch.testing.assert_close(model(maps)[0], torch.from_numpy(record["heatmaps"][1]))
    for name in ("again.pt", "again.npz", "again.safetensors"):
        plane.save(tmp_path / name)
        assert ConceptEmbedding.load(tmp_path / name).plain() == plane.plain()
    # What is written, every PyTorch reads without running code, and the package, too.
    settings = torch.load(tmp_path / "again.pt", weights_only=True)
    assert set(settings) >= {"state_dict", "kernel_size", "normal_vec_name", "bias_name", "scaling_factor"}
    with np.load(tmp_path / "again.npz") as arrays:
        assert set(arrays) == {"normal_vec", "support_factor", "scaling_factor", "concept_name", "layer_id"}
    # This library's own class reads the arrays of version 1.0, and makes a model of them.
    own = core.ConceptEmbedding.load(tmp_path / "again.npz")
    assert (own.concept_name, own.layer_id) == ("face", "features.5")
    torch.testing.assert_close(OwnModel.from_embedding(own)(maps), model(maps))


def test_a_file_with_code_or_damage_is_refused(tmp_path):
    path = tmp_path / "code.pt"
    torch.save({"state_dict": {}, "run": print}, path)
    with pytest.raises(StateError, match="damaged or holds more than numbers"):
        ConceptEmbedding.load(path)
    torch.save({"state_dict": {"w": torch.ones(2)}}, path)
    with pytest.raises(StateError, match="no valid concept embedding"):
        ConceptEmbedding.load(path)
    path.write_bytes(FILE.read_bytes()[:900])
    with pytest.raises(StateError, match="damaged"):
        ConceptEmbedding.load(path)
    with pytest.raises(StateError, match="is not a file"):
        ConceptEmbedding.load(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="overwrite=True"):
        ConceptEmbedding(normal_vec=[1.0], support_factor=0).save(path, overwrite=False)


# -- the detection model ---------------------------------------------------------------------------------


def test_one_seed_gives_the_weights_and_heatmaps_of_the_package(record):
    torch.manual_seed(7)
    model = ConceptDetectionModel2D(in_channels=4, kernel_size=(2, 3), ensemble_count=2, concept_name="face")
    names = [f"concept_layer_{i}.{name}" for i in (0, 1) for name in ("weight", "bias")]
    assert list(model.state_dict()) == names
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, record[name], err_msg=name)
    torch.testing.assert_close(model(torch.from_numpy(record["maps"])), torch.from_numpy(record["heatmaps"]))
    assert [name for name, _ in model.named_parameters()] == names
    model(torch.from_numpy(record["maps"])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_checkpoint_of_the_package_loads(record):
    model = ConceptDetectionModel2D(in_channels=4, kernel_size=(2, 3), ensemble_count=2)
    state = {name: torch.from_numpy(record[name]) for name in model.state_dict()}
    model.load_state_dict(state)
    torch.testing.assert_close(model(torch.from_numpy(record["maps"])), torch.from_numpy(record["heatmaps"]))
    early = EarlyModel(None, None, None, kernel_size=(2, 3), in_channels=4)
    early.load_state_dict(
        {f"concept_layer.{name}": state[f"concept_layer_0.{name}"] for name in ("weight", "bias")}
    )
    torch.testing.assert_close(
        early(torch.from_numpy(record["maps"])), torch.from_numpy(record["heatmaps"][0])
    )


def test_round_trips_keep_model_and_concept(network, concept):
    model = ConceptDetectionModel2D(
        concept, network, "1", ensemble_count=2, use_bias=False, apply_sigmoid=False
    )
    assert (model.kernel_size, model.in_channels, model.apply_sigmoid) == ((3, 3), 6, False)
    planes = model.to_embedding()
    assert all(plane.concept is model.concept and plane.main_model is network for plane in planes)
    assert planes[0].model_stump is model.main_model_stump
    again = ConceptDetectionModel2D.from_embedding(planes)
    assert again.settings == model.settings
    assert list(again.state_dict()) == list(model.state_dict())
    maps = torch.rand(2, 6, 5, 5)
    torch.testing.assert_close(again(maps), model(maps))
    torch.testing.assert_close(
        planes[1].distance(maps[0, :, :3, :3].numpy()[None]),
        model(maps)[1, 0, 0, 1, 1].item(),
        rtol=1e-4,
        atol=1e-5,
    )
    early = EarlyModel(concept, network, "1")
    back = EarlyModel.from_embedding(early.to_embedding())
    assert back.settings == early.settings
    torch.testing.assert_close(back(maps), early(maps))
    assert ConceptSegmentationModel2D(concept, network, "1").kernel_size == (1, 1)


def test_a_channel_count_that_differs_is_kept_or_replaced(network, concept, caplog):
    assert ConceptDetectionModel2D(concept, network, "1", in_channels=7).in_channels == 7
    assert "in_channels=7 is kept" in caplog.text
    with pytest.warns(UserWarning, match="in_channels=7 is replaced by 6"):
        assert EarlyModel(concept, network, "1", in_channels=7).in_channels == 6


def test_the_stump_is_a_module_that_runs_the_whole_model(network):
    x = torch.rand(2, 3, 12, 12, requires_grad=True)
    model = ConceptDetectionModel2D(None, network.train(), "1", kernel_size=(1, 1), in_channels=6)
    stump = model.main_model_stump
    assert isinstance(stump, nn.Module)
    assert (stump.stump_head, stump.wrapped_model, network.training) == ("1", network, False)
    calls = []
    handle = network[4].register_forward_hook(lambda *_: calls.append(1))
    maps = stump(x)
    handle.remove()
    torch.testing.assert_close(maps, network[:2](x))
    assert calls == [1]
    maps.sum().backward()
    assert x.grad is not None
    assert all(not vars(module)["_forward_hooks"] for module in network.modules())
    assert not any(name.startswith("main") for name, _ in model.named_modules())
    with pytest.raises(LayerError, match="stump_head='conv' must be one of"):
        ModelStump(network, "conv")


def test_hessian_and_prior_of_a_checkpoint_become_the_posterior(record):
    torch.manual_seed(3)
    model = ConceptDetectionModel2D(
        in_channels=2, kernel_size=(1, 1), use_laplace=True, apply_sigmoid=False
    ).eval()
    layer = model.concept_layer_0
    maps = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(model(maps)[0], layer(maps))  # no posterior yet
    root = torch.rand(3, 3)
    state = {
        **model.state_dict(),
        "concept_layer_0.hessian": root @ root.T,
        "concept_layer_0.var0": torch.tensor([0.5]),
    }
    model.load_state_dict(state)
    phi = torch.cat([torch.ones(1, 9), maps.reshape(2, 9)])  # the bias comes first in the package
    variance = (phi * torch.linalg.solve(root @ root.T + 2 * torch.eye(3), phi)).sum(dim=0).reshape(3, 3)
    expected = layer(maps)[0, 0] / torch.sqrt(1 + torch.pi / 8 * variance)
    torch.testing.assert_close(model(maps)[0, 0, 0], expected, rtol=1e-4, atol=1e-5)
    for again in (copy.deepcopy(model), ConceptDetectionModel2D.from_embedding(model.to_embedding()).eval()):
        torch.testing.assert_close(again(maps), model(maps), rtol=1e-4, atol=1e-5)


def test_a_trained_posterior_is_saved_in_the_published_buffers(network, concept):
    model = ConceptDetectionModel2D(concept, network, "1", kernel_size=(1, 1), use_laplace=True)
    core.train_detection_model(model, epochs=3, progbar=False)
    again = ConceptDetectionModel2D(None, network, "1", (1, 1), 6, use_laplace=True)
    again.load_state_dict(model.state_dict())
    maps = torch.rand(2, 6, 5, 5)
    torch.testing.assert_close(again.eval()(maps), model.eval()(maps))
    assert (model.concept_layer_0.var0 > 0).all()
    model.reset_parameters()
    assert not model.laplace_factor.any()


def test_an_embedding_is_a_target(network, concept):
    plane = ConceptDetectionModel2D(concept, network, "1").to_embedding()[0]
    own = plane.plain()
    assert plane.as_target().layer == own.as_target().layer == "1"
    assert own.normal_vec.shape == (6, 3, 3)
    with pytest.raises(InputError, match="embeddings_list"):
        ConceptDetectionModel2D.from_embedding([])


# -- data and training ------------------------------------------------------------------------------------


def test_a_concept_keeps_its_data_sets(concept):
    image, mask = concept.train_data[0]
    assert isinstance(image, torch.Tensor)
    assert mask.shape == (1, 12, 12)
    assert len(concept.train_val_data) == 12
    assert concept.data.info == {"train": 6, "val": 6, "test": 6}
    assert concept.rel_size == (0.25, 0.25)
    assert concepts.SegmentationConcept2D.new(concept) == concept
    assert concept != concepts.SegmentationConcept2D("wheel", concept.data)
    assert concept.train_data.masks_of_shape((6, 6)).shape == (6, 6, 6)
    with pytest.raises(InputError, match="has no training data"):
        concepts.SegmentationConcept2D("face", data=None)


def test_the_handle_trains_and_evaluates(network, concept):
    model = ConceptDetectionModel2D(concept, network, "1")
    handle = ConceptDetection2DTrainTestHandle(
        model, data_for_concept_model(model), max_epochs=30, loss_fn=kpis.BalancedBCELoss()
    )
    before = handle.evaluate()
    assert list(before) == ["test_loss", "test_mean_iou", "test_set_iou"]
    (plane,) = handle.train()
    after = handle.evaluate()
    assert len(plane.losses) <= 30
    assert after["test_set_iou"] > max(0.8, before["test_set_iou"])
    assert after["test_loss"] < before["test_loss"]


@pytest.mark.parametrize(("sigmoid", "loss"), [(True, nn.BCELoss()), (False, nn.BCEWithLogitsLoss())])
def test_the_second_stage_approximates_the_posterior(network, concept, sigmoid, loss):
    model = ConceptDetectionModel2D(concept, network, "1", apply_sigmoid=sigmoid, use_laplace=True)
    handle = ConceptDetection2DTrainTestHandle(
        model, data_for_concept_model(model), max_epochs=2, loss_fn=loss
    )
    weight = model.weight.clone()
    handle.second_stage_train()
    assert model.laplace_factors().any()
    torch.testing.assert_close(model.weight, weight, rtol=0, atol=0)
    handle.train()
    assert not torch.equal(model.weight, weight)


def test_channels_are_checked_with_the_data(network, concept):
    model = ConceptDetectionModel2D(concept, network, "1", kernel_size=(1, 1), in_channels=7)
    with pytest.raises(InputError, match="in_channels=7 must be 6"):
        data_for_concept_model(model)
    with pytest.raises(InputError, match="in_channels=7 must be 6"):
        EarlyHandle(EarlyModel(concept, network, "1", kernel_size=(1, 1), in_channels=7))


@pytest.mark.parametrize(
    ("size", "after", "before"), [((4,), (1, 2), (2, 1)), ((1, 3), (0, 0, 1, 1), (0, 0, 1, 1))]
)
def test_same_padding(size, after, before):
    assert same_padding(size) == after
    assert same_padding(size, hang_front=True) == before
