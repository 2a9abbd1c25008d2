"""Reads the imports and holds the arrows: a room imports only what stands before it in the package's own list."""

import ast
import re
from pathlib import Path

import pytest

import clr_loop

PACKAGE = Path(clr_loop.__file__).parent
SCRIPTS = PACKAGE.parent / "scripts"

ROOMS = re.findall(r"^    (\w+)  ", clr_loop.__doc__, re.MULTILINE)

# Methods that reach upward, when called.
UPWARD = {("schedule_base", "description"), ("schedule_base", "keras_schedule"), ("loop", "streaming")}
HEAVY = {"tensorflow", "keras", "tensorboard", "matplotlib"}


def imports_of(path, only_top_level=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported_by(room):
    parts = [name.split(".") for name in imports_of(PACKAGE / f"{room}.py")]
    return {part[1] for part in parts if part[0] == "clr_loop" and len(part) > 1 and part[1] in ROOMS}


def test_every_room_is_in_the_list():
    assert sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__") == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_only_downward(room):
    for other in rooms_imported_by(room):
        assert ROOMS.index(other) < ROOMS.index(room) or (room, other) in UPWARD, f"{room} imports {other}"


@pytest.mark.parametrize(
    "room",
    [
        "__init__",
        "schedule_base",
        "cyclic",
        "schedules",
        "description",
        "lengths",
        "named",
        "workers",
        "data",
        "timing",
        "run_files",
        "results",
    ],
)
def test_rooms_without_tensorflow(room):
    packages = {name.split(".")[0] for name in imports_of(PACKAGE / f"{room}.py", only_top_level=True)}
    assert not packages & HEAVY


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_the_library_reads_no_flags_prints_nothing_and_opens_no_window(path):
    packages = set(imports_of(path))
    assert not any(name.startswith(("absl.flags", "absl.app", "matplotlib.pyplot", "scripts")) for name in packages)
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id in ("print", "input") for call in calls)


def test_scripts_do_not_import_tensorflow_before_their_flags_are_read():
    for path in SCRIPTS.glob("*.py"):
        packages = {name.split(".")[0] for name in imports_of(path, only_top_level=True)}
        assert not packages & HEAVY, path.name
