"""Draw which module imports which: `python scripts/import_graph.py OUT.svg SOURCES...`, a graph a folder of sources.

A module stands above all that it imports; every import counts, also those inside functions and for type checkers only.
To lay today's graph beside an earlier one: `git worktree add /tmp/earlier COMMIT`, and name both folders.
"""

import ast
import sys
from functools import cache
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

WIDTH, HEIGHT = 7.0, 9.0
"""Inches of each graph."""


class ImportGraph:
    """Read the modules of a package, their imports, and the layers that these make.

    Args:
        root: The package's folder.
    """

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self.modules: dict[str, Path] = {}
        for path in sorted(root.rglob("*.py")):
            if path.stem not in {"__init__", "__main__"}:
                self.modules[".".join(path.relative_to(root).with_suffix("").parts)] = path
        self.imports = {module: self._imports(module) for module in self.modules}

    def _imports(self, module: str) -> frozenset[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.modules[module].read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found |= {name.removeprefix(f"{self.name}.") for name in names} & self.modules.keys()
        return frozenset(found - {module})

    def in_circles(self) -> list[str]:
        """Return the modules that import themselves, through others."""
        found = []
        for start in self.modules:
            reached, left = set[str](), set(self.imports[start])
            while left:
                module = left.pop()
                reached.add(module)
                left |= self.imports[module] - reached
            if start in reached:
                found.append(start)
        return found

    def layers(self) -> dict[str, int]:
        """Return 1 for a module that imports no other, else one more than the highest that it imports."""

        @cache
        def layer(module: str) -> int:
            return 1 + max(map(layer, self.imports[module]), default=0)

        return {module: layer(module) for module in self.modules}


def draw(graphs: list[ImportGraph]) -> Figure:
    """Draw graphs side by side, a row for each layer and a colour for each package."""
    figure = Figure(figsize=(WIDTH * len(graphs), HEIGHT), layout="constrained")
    highest = max(max(graph.layers().values()) for graph in graphs)
    for axis, graph in zip(figure.subplots(1, len(graphs), squeeze=False)[0], graphs, strict=True):
        layers = graph.layers()
        packages = sorted({module.rpartition(".")[0] for module in graph.modules})
        colour = {package: colormaps["Set3"](i % 12) for i, package in enumerate(packages)}
        place: dict[str, tuple[float, float]] = {}
        for layer in range(1, highest + 1):
            row = sorted(module for module in graph.modules if layers[module] == layer)
            place |= {module: ((i + 0.5) / len(row), layer) for i, module in enumerate(row)}
        for module, imported in graph.imports.items():
            for other in imported:
                axis.plot(*zip(place[module], place[other], strict=True), color="0.75", lw=0.5, zorder=1)
        for module, (x, y) in place.items():
            package, _, name = module.rpartition(".")
            box = {"boxstyle": "round,pad=0.25", "fc": colour[package], "ec": "0.4", "lw": 0.5}
            axis.text(x, y, name.replace("_", "_\n"), ha="center", va="center", fontsize=5.5, bbox=box, zorder=2)
        n_imports = sum(map(len, graph.imports.values()))
        axis.set_title(f"{len(graph.modules)} modules, {max(layers.values())} layers, {n_imports} imports", fontsize=10)
        axis.set(xlim=(0, 1), ylim=(0.3, highest + 0.7), xticks=[], yticks=range(1, highest + 1), ylabel="layer")
        axis.spines[:].set_visible(False)
        for package in packages:
            axis.plot([], [], "s", color=colour[package], label=package or "(beside the packages)")
        axis.legend(loc="upper left", fontsize=6, frameon=False, ncols=2)
    return figure


if __name__ == "__main__":
    out, *folders = sys.argv[1:]
    draw([ImportGraph(Path(folder)) for folder in folders]).savefig(out, dpi=90)
