"""What `make docs` shows: the repository's own pages where they lie, and the API from docstrings.

A hook of mkdocs (mkdocs.yml). A page has the address on the site that its file has in the
repository, so that relative links between pages are right in both; links to modules of the library
go to the API reference, which has a page a room.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pangu_jax"
FACE = "pangu_jax/README.md"
SYSTEMS = "experiments/*/README.md"
PAGES = ("*.md", "docs/**/*.md", "examples/README.md", SYSTEMS)
# What pages may link to as it is.
FILES = (
    "LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "examples/*.py", "tools/**/*.py",
    "tests/**/*.py", "experiments/*/*.py", "experiments/*/*.json",
)  # fmt: skip
MODULE = re.compile(r"\]\(((?:\.\./)*)pangu_jax/(\w+)/((?:\w+/)*\w+)\.py\)")
# What only the place has where the repository lies: the badge of its own workflow.
ACTIONS = re.compile(r"^\[!\[[^]]*\]\((?:\.\./)+actions/.*\n", re.M)
FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^(\s*)(-|\d+\.) ")


def on_config(config: Any) -> Any:
    """Names the pages that are found, not listed, in the site's navigation."""
    for entry in config.nav:
        if "Systems" in entry:
            entry["Systems"] += [_name(path) for path in sorted(ROOT.glob(SYSTEMS))]
    rooms = [{room: f"pangu_jax/{room}.md"} for room in rooms_of(PACKAGE)]
    config.nav.append({"Reference": [FACE, *rooms]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """The theme's files, the repository's pages and what they link to, and the reference."""
    found = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in sorted(path for pattern in (*PAGES, *FILES) for path in ROOT.glob(pattern)):
        found.append(File(_name(path), str(ROOT), config.site_dir, config.use_directory_urls))
    pages = {FACE: face()} | {f"pangu_jax/{r}.md": room(r, m) for r, m in rooms_of(PACKAGE).items()}
    for name, text in pages.items():
        found.append(File.generated(config, name, content=text))
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A page as the site needs it: links to code, and lists that need a blank line before them."""
    del page, files
    markdown = MODULE.sub(_to_reference, markdown)
    markdown = ACTIONS.sub("", markdown)
    return "\n".join(_with_blank_lines(markdown.split("\n")))


def rooms_of(package: Path) -> dict[str, list[str]]:
    """The library's rooms, and the full names of the modules of each."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.glob("*/**/*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if not parts[-1].startswith("_"):
            found.setdefault(parts[1], []).append(".".join(parts))
    return found


def room(name: str, modules: list[str]) -> str:
    """The page of a room: what its package says, then its modules."""
    about = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text("utf-8"))) or ""
    entries = [f"::: {module}" for module in modules]
    return "\n\n".join([f"# {name}", about, *entries]) + "\n"


def face() -> str:
    """The page of `import pangu_jax as pj`: the names of `__all__`, each from where it is."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    places = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PLACES"
    )
    # The room that can be called is its task's function.
    full = {n: f"task.{n}.{n}" if n == place else f"{place}.{n}" for n, place in places.items()}
    options = "    options: {skip_local_inventory: true, show_root_full_path: false}"
    entries = [f"::: pangu_jax.{path}\n{options}" for path in full.values()]
    about = "What `import pangu_jax as pj` offers. [From Python](../docs/python.md) has examples."
    return "\n\n".join(["# pangu_jax", about, *entries]) + "\n"


def _to_reference(link: re.Match) -> str:
    up, room, module = link.groups()
    return f"]({up}pangu_jax/{room}.md#pangu_jax.{room}.{module.replace('/', '.')})"


def _with_blank_lines(lines: list[str]) -> list[str]:
    """GitHub begins a list right after a paragraph; Python-Markdown wants a blank line between."""
    found: list[str] = []
    fenced = in_list = False
    for line in lines:
        if FENCE.match(line):
            fenced = not fenced
        item = not fenced and ITEM.match(line)
        if item and not in_list and found and found[-1].strip():
            found.append("")
        in_list = bool(item) or (in_list and bool(line.strip()))
        found.append(line)
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
