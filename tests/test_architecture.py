"""Reads the imports and holds the house's order: scripts → commands → studies → runs → loop → {schedules, data}."""

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
    "commands": {"schedules", "data", "loop", "runs", "studies"},
}
HEAVY = {"tensorflow", "keras", "tensorboard", "matplotlib", "jax", "torch"}
FILES = sorted(path for room in BELOW for path in (PACKAGE / room).rglob("*.py"))
LIBRARY = [path for path in FILES if path.parent.name != "commands"]
COMMANDS = sorted(SCRIPTS.glob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path, only_at_import=False):
    """The dotted names that a file imports; with only_at_import, those that it imports when it is imported itself."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if only_at_import:
        inside = {
            id(child)
            for node in nodes
            if isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            for child in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name):
    """The file of a module of this project, or None."""
    for root in (PACKAGE.parent, SCRIPTS):
        place = root.joinpath(*name.split("."))
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def reached_from(path, seen):
    for name in imports_of(path, only_at_import=True):
        yield name
        file = file_of(name)
        if file is not None and file not in seen:
            seen.add(file)
            yield from reached_from(file, seen)


def test_every_folder_is_a_known_room():
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} == set(BELOW)
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(path):
    parts = [name.split(".") for name in imports_of(path)]
    rooms = {part[1] for part in parts if part[0] == "clr_loop" and len(part) > 1 and part[1] in BELOW}
    room = path.relative_to(PACKAGE).parts[0]
    assert rooms <= BELOW[room] | {room}
    assert not any(part[0] in ("scripts", "contenders") for part in parts)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_no_import_hides_inside_a_function(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    hidden = [n for function in functions for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not hidden


def test_no_files_import_each_other_in_a_circle():
    above = {}

    def visit(path, trail):
        assert path not in trail, " → ".join(name_of(p) for p in [*trail[trail.index(path) :], path])
        if path not in above:
            above[path] = True
            for file in filter(None, map(file_of, imports_of(path))):
                if file != path and file.parent != PACKAGE and file.name != "__init__.py":
                    visit(file, [*trail, path])

    for path in FILES:
        visit(path, [])
    assert set(FILES) <= set(above)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_reads_no_flags_prints_nothing_and_opens_no_window(path):
    names = set(imports_of(path))
    assert not any(name.startswith(("absl.flags", "absl.app", "matplotlib.pyplot")) for name in names)
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id in ("print", "input") for call in calls)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_script_reads_its_flags_before_it_imports_tensorflow(path):
    packages = {name.split(".")[0] for name in reached_from(path, set())}
    assert not packages & (HEAVY - {"matplotlib"}), path.name
