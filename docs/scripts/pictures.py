"""Make the pictures of the site's pages anew, from the code that stands in the pages.

    python docs/scripts/pictures.py [PAGE ...]

runs the Python blocks of each page in a folder of its own and puts the picture files of `PICTURES` that they
wrote into ``docs/images``. All pages together take some ten minutes on two CPU cores.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
from PIL import Image

DOCS = Path(__file__).parents[1]

PICTURES = {
    "gallery": {
        f"gallery-{name}.jpg": f"gallery-{name}.jpg"
        for name in ("photographs", "layers", "beta", "classes", "seeds")
    },
    "pytorch": {"cat.png": "guide-pytorch.jpg"},
    "keras": {"cat.png": "guide-keras.jpg"},
    "concepts-in-pictures": {"concepts-in-pictures.jpg": "concepts-in-pictures.jpg"},
    "concepts": {"face-astronaut.png": "face-astronaut.jpg"},
    "text": {"text.png": "text.png"},
    "what-a-map-does-not-say": {"sufficiency.jpg": "sufficiency.jpg"},
    "tensorflow": {"emotions.jpg": "emotions.jpg"},
}
"""For each page, the files that its code writes, and the names of the pictures that they become."""

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def make(page: str) -> None:
    """Run the code of a page and put its pictures into ``docs/images``."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names: dict[str, object] = {"__name__": page}
        for code in _BLOCK.findall(text):
            exec(compile(code, f"{page}.md", "exec"), names)
        for made, shown in PICTURES[page].items():
            with Image.open(made) as picture:
                if shown.endswith(".jpg") and not made.endswith(".jpg"):
                    picture.convert("RGB").save(DOCS / "images" / shown, quality=85)
                else:
                    (DOCS / "images" / shown).write_bytes(Path(made).read_bytes())
            sys.stdout.write(f"docs/images/{shown}\n")


if __name__ == "__main__":
    mpl.use("agg")
    for wanted in sys.argv[1:] or PICTURES:
        make(wanted)
