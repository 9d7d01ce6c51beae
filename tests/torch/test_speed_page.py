"""What docs/speed.md shows works."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"


def test_the_code_on_the_page_runs(capsys):
    names = {}
    for code in re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        exec(compile(code, str(PAGE), "exec"), names)
    slow, fast, settled = (names[name] for name in ("slow", "fast", "settled"))
    assert np.corrcoef(slow.saliency.ravel(), fast.saliency.ravel())[0, 1] > 0.95
    assert "'antithetic': True" in capsys.readouterr().out
    assert settled.steps_taken[0] < 100
