"""Which tests are nearest to a module of the library."""

import ast
import os
from functools import cached_property
from pathlib import Path

from mutation.sites import PACKAGE

LAST_FOLDERS = {"system", "experiments", "tools"}  # their tests run much, and slowly


class NearestTests:
    """Which tests are nearest to a module, as told by names and imports."""

    def __init__(self, tree: Path):
        self.tree = tree
        paths = sorted((tree / PACKAGE).rglob("*.py"))
        self.modules = {self._name(path): path for path in paths}

    def _name(self, path: Path) -> str:
        parts = Path(os.path.relpath(path, self.tree)).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    @cached_property
    def of_modules(self) -> dict[str, set[str]]:
        """The modules of the library that each of them imports."""
        return {name: self._imports(path) for name, path in self.modules.items()}

    @cached_property
    def of_tests(self) -> dict[Path, set[str]]:
        """The modules of the library that each test file imports."""
        paths = sorted((self.tree / "tests").rglob("test_*.py"))
        return {path.relative_to(self.tree): self._imports(path) for path in paths}

    def _imports(self, path: Path) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
                found.add(self._name(path.parent / str(node.value)))  # run as a script
        return found & self.modules.keys()

    def nearest(self, path: str, most: int) -> list[str]:
        """The test file that mirrors a module, then those that import it, the nearest first.

        Near are tests of the same folder, and of these the ones that import the least. Where they
        are too few, those follow that import the modules that import it, and so on.
        """
        module = Path(path).with_suffix("")
        inner = Path("tests", *module.parts[1:])
        mirrored = inner.with_name(f"test_{inner.name}.py")

        def distance(test: Path):
            room = test.parts[1]
            return room != inner.parts[1], room in LAST_FOLDERS, len(self.of_tests[test]), test

        near = [mirrored] if mirrored in self.of_tests else []
        wanted, known = {self._name(self.tree / path)}, set()
        while wanted and len(near) < most:
            ring = [t for t, names in self.of_tests.items() if names & wanted and t not in near]
            near += sorted(ring, key=distance)
            known |= wanted
            wanted = {name for name, names in self.of_modules.items() if names & wanted} - known
        return [test.as_posix() for test in near[:most]]
