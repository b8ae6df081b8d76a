"""The floors of the house: an import only ever points down, and the light rooms stay light."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "forestgaps_jax"
FLOORS = [
    {"host"},
    {"types", "fields", "files", "compilation", "compilation_cache", "parallel"},
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


def modules_after(code: str) -> set[str]:
    """What a new process has loaded after some code."""
    code = f"import sys\n{code}\nprint('loaded', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("loaded ")[2].split())


def test_importing_the_library_loads_nothing_heavy():
    loaded = modules_after("from forestgaps_jax import *")
    assert not {name.partition(".")[0] for name in loaded} & {
        "rasterio",
        "matplotlib",
        "orbax",
        "tensorboardX",
        "tqdm",
        "tyro",
        "pandas",
        "grain",
        "torch",
        "shapely",
        "pyogrio",
    }
    assert not loaded & {"scipy.interpolate", "scipy.ndimage", "scipy.optimize", "scipy.special"}


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "report", "gaps", "replay"])
def test_help_needs_no_jax(command):
    code = f"""
        import contextlib
        from forestgaps_jax.cli import main
        with contextlib.suppress(SystemExit):
            main({[*command.split(), "--help"]})"""
    loaded = modules_after(textwrap.dedent(code))
    assert "forestgaps_jax.cli" in loaded
    assert not loaded & {"jax", "flax", "numpy"}
    assert ("tyro" in loaded) == bool(command)


def test_every_public_name_is_where_the_library_looks_for_it():
    import forestgaps_jax

    homes = [name for names in forestgaps_jax._HOMES.values() for name in names]
    assert sorted(homes) == sorted(forestgaps_jax.__all__)
    assert {name for name in forestgaps_jax.__all__ if hasattr(forestgaps_jax, name)} == set(homes)
    assert set(homes) < set(dir(forestgaps_jax))
    assert forestgaps_jax.models.MODELS  # a room, without an import of its own
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = forestgaps_jax.trian
