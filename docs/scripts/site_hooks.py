"""What MkDocs does beyond its plugins while it builds the site.

A name in code font, such as ``Explainer`` or ``Explainer.fit``, becomes a link to its entry in the API
reference, wherever it stands in a paragraph, a list or a table. The path of the script that makes the search
work without a server becomes relative to each page. CONTRIBUTING.md and CHANGELOG.md are pages, too, and so
are the notebooks with what they have shown.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "iba_core": ROOT / "iba_core",
    "iba_core.concepts": ROOT / "iba_core" / "concepts",
    "iba_torch": ROOT / "backends" / "torch" / "iba_torch",
    "iba_tf": ROOT / "backends" / "tf" / "iba_tf",
    "iba_torch.concepts": ROOT / "backends" / "torch" / "iba_torch" / "concepts",
    "iba_tf.concepts": ROOT / "backends" / "tf" / "iba_tf" / "concepts",
}
"""The packages whose ``__all__`` is public, and their folders. The first one that has a name wins."""

BACKENDS = {
    "Framework": "iba_core.framework.framework.Framework",
    "ModelAdapter": "iba_core.framework.adapter.ModelAdapter",
    "Split": "iba_core.framework.adapter.Split",
    "Tail": "iba_core.framework.adapter.Tail",
}
"""The names for authors of backends, and their anchors."""

# What already is a link, a heading or a listing stays as it is.
_PROTECTED = re.compile(
    r"(<a\b.*?</a>|<pre\b.*?</pre>|<h[1-6]\b.*?</h[1-6]>|<autoref\b.*?</autoref>)", re.DOTALL
)
_NAME = re.compile(r"<code>([A-Za-z_][\w.]*)(\(\))?</code>")


def public_names(package: str) -> list[str]:
    """The names in ``__all__`` of a package, read without importing it."""
    tree = ast.parse((PACKAGES[package] / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@cache
def identifiers() -> dict[str, str]:
    """Anchor of each public name, by the name alone and by the name with its package."""
    found = dict(BACKENDS)
    ambiguous = set(public_names("iba_torch")) & set(public_names("iba_tf"))
    for package in PACKAGES:
        for name in public_names(package):
            found[f"{package}.{name}"] = f"{package}.{name}"
            if name not in ambiguous or package == "iba_core":
                found.setdefault(name, f"{package}.{name}")
    return found


def _link(match: re.Match[str]) -> str:
    name = match[1]
    known = identifiers()
    owner, _, member = name.rpartition(".")
    if name in known:
        identifier = known[name]
    elif name.startswith(tuple(f"{package}." for package in PACKAGES)):
        identifier = name  # the module that defines it; without an entry there is no link
    elif owner in known and not member.startswith("_"):
        identifier = f"{known[owner]}.{member}"
    else:
        return match[0]
    return f'<autoref identifier="{identifier}" optional>{match[0]}</autoref>'


_PROJECT_FILES = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}
"""Pages of the site that stand in files at the root of the repository."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the project's files in place of the pages that stand for them, and link to notebooks' pages."""
    if page.file.src_uri == "notebooks/index.md":
        return markdown.replace(".ipynb)", ".md)")
    if page.file.src_uri not in _PROJECT_FILES:
        return markdown
    text = (ROOT / _PROJECT_FILES[page.file.src_uri]).read_text(encoding="utf-8")
    return text.replace("](docs/", "](")


def on_files(files: Any, config: Any) -> Any:
    """Make a page of each notebook."""
    from mkdocs.structure.files import File

    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        name = file.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{name}.md", content=page_of(notebook, Path(file.src_uri).name)))
    return files


def page_of(notebook: dict[str, Any], name: str) -> str:
    """The cells of a notebook, and what they have shown, as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts.extend(_shown(output) for output in cell["outputs"])
    parts.append(f"[Download this notebook]({name})")
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        source = f"data:image/png;base64,{data['image/png']}"
        return f'<p><img alt="what the cell above has drawn" src="{source}"></p>'
    if "text/html" in data:
        # A blank line would end a block of HTML.
        return "<div>" + "".join(data["text/html"]).replace("\n\n", "\n") + "</div>"
    text = "".join(output.get("text", data.get("text/plain", [])))
    return f"```text\n{text.rstrip()}\n```"


def on_page_content(html: str, **_: Any) -> str:
    """Link the public names of a page."""
    parts = _PROTECTED.split(html)
    return "".join(part if index % 2 else _NAME.sub(_link, part) for index, part in enumerate(parts))


_SHIM = "assets/iframe-worker-shim.js"


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Make the path of the search's script relative to the page; the theme takes it as it is."""
    above = "../" * page.file.dest_uri.count("/")
    return output.replace(f'src="{_SHIM}"', f'src="{above}{_SHIM}"')
