import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def test_a_wheel_works_outside_the_checkout_and_brings_its_data(tmp_path):
    # From a copy, because a build leaves folders behind; without isolation, because that would need the network.
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = (
        "import clr_loop, clr_loop.data as data; from importlib.resources import files;"
        "print(clr_loop.__file__, data.load('mnist').train.images.shape, (files('clr_loop') / 'py.typed').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/site/clr_loop/__init__.py (60000, 28, 28) True\n"
