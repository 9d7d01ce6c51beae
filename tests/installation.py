"""Install the wheel into clean environments, as users would, and run what the README promises.

python tests/installation.py [ENVIRONMENT ...]      all if none is named

It needs nothing but Python, and takes some minutes. Each environment has other extras, and lacks something.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "install"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)

PHOTOGRAPHS = """
import numpy as np
from pathlib import Path
from PIL import Image
for name in ("photographs/cat/1", "photographs/cat/2", "photographs/dog/1", "photographs/dog/2", "photo"):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)).save(f"{name}.jpg")
"""
OWN_TORCH_MODEL = """
import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 8, 9, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                      nn.Linear(8, 2)).eval()
def transform(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
"""
OWN_KERAS_MODEL = """
import keras
from keras import layers
model = keras.Sequential([
    keras.Input((224, 224, 3)), layers.Rescaling(1 / 255), layers.Conv2D(8, 9, 8, activation="relu"),
    layers.GlobalAveragePooling2D(), layers.Dense(2),
])
"""
NUMBERS = """
from iba_core import Attribution
assert Attribution.load("map.safetensors").saliency.shape == (1, 224, 224)
"""


class Environment:
    """A virtual environment with the wheel in it."""

    def __init__(self, name: str, extras: str = "", python: str = sys.executable, pins: Path | None = None):
        self.folder = BUILD / name
        shutil.rmtree(self.folder, ignore_errors=True)
        print(f"{name}: {python} -m venv, then pip install 'iba-core{extras}'", flush=True)
        run(python, "-m", "venv", self.folder)
        pins = pins or ROOT / "constraints.txt"
        self.install(f"iba-core{extras} @ {wheel().as_uri()}", "--constraint", pins)

    def install(self, *arguments: object) -> None:
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)

    def run(self, *arguments: object, code: int = 0) -> str:
        """Run Python away from the sources; `code` is the exit code that it must have."""
        return run(self.folder / "bin" / "python", *arguments, code=code, cwd=self.folder)

    def program(self, *parts: str) -> None:
        """Run a program, shown when it fails."""
        self.run("-c", "import matplotlib; matplotlib.use('agg')\n" + "\n".join(parts))

    def lacks(self, *packages: str) -> None:
        found = f"import importlib.util as u; print([p for p in {packages} if u.find_spec(p)])"
        assert self.run("-c", found).strip() == "[]", f"one of {packages} is in {self.folder}"


def run(*command: object, code: int = 0, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [*map(str, command)],
        check=False,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}\nexit code {done.returncode}:\n{done.stdout}")
    return done.stdout


def wheel() -> Path:
    """Build the wheel, once."""
    if not (wheels := [*(BUILD / "wheel").glob("*.whl")]):
        run(
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", BUILD / "wheel", ROOT
        )
        wheels = [*(BUILD / "wheel").glob("*.whl")]
    return wheels[0]


def core(python: str = sys.executable) -> None:
    """The core alone: no framework, and one line that says what to install."""
    environment = Environment(f"core-{Path(python).name}", python=python)
    environment.lacks("torch", "tensorflow", "keras", "matplotlib")
    assert "iba" in environment.run("-m", "iba_core", "--help")
    assert run(environment.folder / "bin" / "iba", "--version").split()[-1] == PROJECT["version"]
    environment.run("-c", "import iba_core; iba_core.BottleneckSettings()")
    said = environment.run("-m", "iba_core", "layers", "efficientnet-lite0", code=2)
    assert "pip install" in said, said
    # The pages of reports are no Python.
    pages = "print(len([*(importlib.resources.files('iba_core.report') / 'templates').iterdir()]))"
    assert environment.run("-c", f"import importlib.resources, iba_core.report; {pages}").strip() == "3"
    # TensorFlow is published under several names, which overwrite each other's files.
    plan = environment.run("-m", "pip", "install", "--dry-run", f"iba-core[tf] @ {wheel().as_uri()}")
    assert "keras" in plan, plan
    assert not re.search(r"Would install.*\btensorflow", plan), plan


def lowest() -> None:
    """The core with the oldest versions that it is said to need, and its tests."""
    extras = PROJECT["optional-dependencies"]
    needed = (
        PROJECT["dependencies"]
        + extras["plot"]
        + extras["report"]
        + [d for d in extras["demo"] if "iba-core" not in d]
    )
    pins = BUILD / "lowest.txt"
    pins.parent.mkdir(parents=True, exist_ok=True)
    pins.write_text("\n".join(line.replace(">=", "==") for line in needed), encoding="utf-8")
    environment = Environment("lowest", "[demo,report]", pins=pins)
    tools = [line for line in extras["dev"] if re.match(r"pytest>|hypothesis|psutil", line)]
    environment.install(*tools, "--constraint", pins)
    environment.lacks("torch", "tensorflow")
    options = ("-p", "no:cacheprovider", "--import-mode=importlib", "-W", "ignore")
    said = run(environment.folder / "bin" / "python", "-m", "pytest", *options, "tests/core")
    print(said.splitlines()[-1])


def torch() -> None:
    """PyTorch: the README's lines for a model of one's own, and for a photograph."""
    environment = Environment("torch", "[torch,demo]")
    environment.lacks("tensorflow", "keras")
    environment.program(PHOTOGRAPHS, OWN_TORCH_MODEL, README[0], README[2], NUMBERS)
    environment.program(README[3])


def tf() -> None:
    """Keras: the same, without PyTorch."""
    environment = Environment("tf", "[tf-cpu,demo]")
    environment.lacks("torch")
    environment.program(PHOTOGRAPHS, OWN_KERAS_MODEL, README[1], README[2], NUMBERS)
    environment.program(README[4])


def newer() -> None:
    """The core on the newer versions of Python that are on this machine."""
    for version in ("3.12", "3.13"):
        python = shutil.which(f"python{version}")
        # A name may lead to nothing, such as pyenv's of a version that is not chosen.
        if python and subprocess.run([python, "--version"], check=False, capture_output=True).returncode == 0:
            core(python)
        else:
            print(f"no python{version} here")


ENVIRONMENTS = (core, newer, lowest, torch, tf)


if __name__ == "__main__":
    shutil.rmtree(BUILD / "wheel", ignore_errors=True)
    wanted = sys.argv[1:] or [environment.__name__ for environment in ENVIRONMENTS]
    for environment in ENVIRONMENTS:
        if environment.__name__ in wanted:
            environment()
            # They take gigabytes. What failed stays to be looked at.
            for folder in BUILD.glob("*/pyvenv.cfg"):
                shutil.rmtree(folder.parent)
    print(f"installed and run: {', '.join(wanted)}")
