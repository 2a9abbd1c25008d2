"""Reads the imports and holds the house's order: scripts → studies → runs → loop → {schedules, data}."""

import ast
from pathlib import Path

import pytest

import clr_loop

PACKAGE = Path(clr_loop.__file__).parent
SCRIPTS = PACKAGE.parent / "scripts"

# What each room may import beside itself. The two on the ground floor know nothing of each other.
BELOW = {
    "schedules": set(),
    "data": set(),
    "loop": {"schedules", "data"},
    "runs": {"schedules", "data", "loop"},
    "studies": {"schedules", "data", "loop", "runs"},
}
HEAVY = {"tensorflow", "keras", "tensorboard", "matplotlib"}
MODULES = sorted(path for room in BELOW for path in (PACKAGE / room).glob("*.py"))


def imports_of(path, only_top_level=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_every_folder_is_a_known_room():
    assert {path.parent.name for path in PACKAGE.rglob("*.py") if path.parent.parent == PACKAGE} == set(BELOW)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(path):
    parts = [name.split(".") for name in imports_of(path)]
    rooms = {part[1] for part in parts if part[0] == "clr_loop" and len(part) > 1 and part[1] in BELOW}
    assert rooms <= BELOW[path.parent.name] | {path.parent.name}
    assert not any(part[0] in ("scripts", "shared", "contenders") for part in parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_library_reads_no_flags_prints_nothing_and_opens_no_window(path):
    packages = set(imports_of(path))
    assert not any(name.startswith(("absl.flags", "absl.app", "matplotlib.pyplot")) for name in packages)
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id in ("print", "input") for call in calls)


def test_scripts_do_not_import_tensorflow_before_their_flags_are_read():
    for path in SCRIPTS.rglob("*.py"):
        packages = {name.split(".")[0] for name in imports_of(path, only_top_level=True)}
        assert not packages & HEAVY, path.name
