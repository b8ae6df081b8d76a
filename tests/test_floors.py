"""The floors of the house: an import only ever points down, and the light rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "forestgaps_jax"
FLOORS = [
    {"types", "fields", "files", "compilation", "compilation_cache"},
    {"settings"},
    {"config"},
    {"layers"},
    {"loss", "metrics", "optimization", "models", "data", "figures"},
    {"recipe"},
    {"state"},
    {"totals"},
    {"steps"},
    {"checkpoint", "in_flight", "together", "run_folder", "statistics"},
    {"callbacks", "divergence"},
    {"evaluation", "interruption", "readiness"},
    {"epochs"},
    {"loop", "many"},
    {"trainer", "inference", "replay"},
    {"experiment"},
    {"report"},
    {"cli"},
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forestgaps_jax"):
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for other in imported_rooms(path) - {room(path)}:
        assert floor(other) < floor(room(path)), f"{path.name} imports {other}"


def test_importing_the_library_loads_nothing_heavy():
    code = "import sys, forestgaps_jax; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = {name.partition(".")[0] for name in loaded.split()}
    assert not names & {
        "rasterio",
        "matplotlib",
        "tensorboardX",
        "tqdm",
        "tyro",
        "pandas",
        "grain",
        "torch",
        "shapely",
        "pyogrio",
    }
