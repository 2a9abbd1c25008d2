"""How things show themselves: a line in a shell; in a notebook a small table, and a picture where they have one."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

# It draws with matplotlib and knows everything that it draws, so nothing that is drawn may import it. As pandas does
# with its plotting back end, this module imports it by name when somebody wants to see a picture.
_PICTURES = "clr_loop.studies.pictures.plots"


class Drawing(Protocol):
    """A picture, see `clr_loop.studies.pictures.canvas.Picture`; a notebook shows it."""

    def together(self) -> Any:
        """Return it as a `matplotlib.figure.Figure`, for `savefig(path)`."""

    def _repr_png_(self) -> bytes: ...


def picture_of(thing: Any, *arguments: Any) -> Drawing:
    """Return the picture of a schedule, a result, a range test or a comparison."""
    picture: Drawing = import_module(_PICTURES).picture_of(thing, *arguments)
    return picture


class Shown:
    """Shows itself as a line in a shell, and as a table in a notebook. A dataclass needs repr=False for it."""

    def _rows(self) -> Sequence[Mapping[str, object]]:
        """Return what to show; several rows have the same names."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = [", ".join(f"{name} {value}" for name, value in row.items()) for row in self._rows()]
        return f"{type(self).__name__}({'; '.join(facts)})"

    def _repr_html_(self) -> str:
        return _table(self._rows())


class Pictured(Shown):
    """Shows a picture beside its table."""

    def plot(self) -> Drawing:
        """Return the picture. A notebook shows it; `plot().together().savefig(path)` saves it."""
        return picture_of(self)

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        # A notebook takes HTML where there is HTML, so the picture is in there, too; drawn once for both.
        png = base64.b64encode(self._repr_png_()).decode()
        return {"text/html": f'{self._repr_html_()}<img src="data:image/png;base64,{png}">', "image/png": png}


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a table with a header; a single one with its names beside its values."""
    if len(rows) == 1:
        lines = [f"{_cell('th', name)}{_cell('td', value)}" for name, value in rows[0].items()]
    else:
        lines = ["".join(_cell("th", name) for name in rows[0])]
        lines += ["".join(_cell("td", value) for value in row.values()) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(tag: str, value: object) -> str:
    return f"<{tag}>{html.escape(str(value))}</{tag}>"


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")
