"""The code of docs/extending.md, as its readers would paste it."""

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def documented(name):
    """Return what the code block of this name defines: a function or a class."""
    for code in re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL):
        if re.search(rf"^(def|class) {name}\b", code, re.MULTILINE):
            names = {"__name__": "docs_extending"}
            exec(code, names)
            return names[name]
    raise LookupError(f"{_PAGE} has no code that defines {name}")
