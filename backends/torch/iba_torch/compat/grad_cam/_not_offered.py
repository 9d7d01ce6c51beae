"""Published names that this library has no class for, so that import lines with them work."""

from __future__ import annotations

from typing import Any

from iba_core.errors import InputError


class NotOffered:
    """Stands for a published class or function that is not offered here."""

    instead: str

    def __init__(self, *args: Any, **options: Any) -> None:
        raise InputError(
            f"{type(self).__name__} of pytorch-grad-cam is not offered here; {self.instead}, or import it "
            "from the published package"
        )


def _absent(name: str, instead: str) -> type[NotOffered]:
    return type(name, (NotOffered,), {"instead": instead, "__doc__": f"Not offered here; {instead}."})


FEM = _absent("FEM", "use EigenCAM")
FinerCAM = _absent("FinerCAM", "use GradCAM with FinerWeightedTarget")
RandomCAM = _absent("RandomCAM", "override BaseCAM.get_cam_weights")
RefineCAM = _absent("RefineCAM", "give GradCAMPlusPlus several layers")
SESS = _absent("SESS", "use aug_smooth=True")
ShapleyCAM = _absent("ShapleyCAM", "use GradCAM with ClassifierOutputReST")
GuidedBackpropReLUModel = _absent("GuidedBackpropReLUModel", "use captum.attr.GuidedBackprop")
DeepFeatureFactorization = _absent("DeepFeatureFactorization", "use iba_core.concepts.ConceptAnalysis")
run_dff_on_image = _absent("run_dff_on_image", "use iba_core.concepts.ConceptAnalysis")
