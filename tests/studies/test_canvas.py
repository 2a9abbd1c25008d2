import pytest

from clr_loop.studies.pictures.canvas import Picture, save, to_png

PNG = b"\x89PNG\r\n\x1a\n"


def draw(label, axes):
    axes.plot([0, 1], [0, 1], label=label)
    axes.set_xlabel("step")


@pytest.fixture
def picture():
    panels = {name: lambda axes, name=name: draw(f"{name}: {'so it goes ' * 9}", axes) for name in ("above", "below")}
    return Picture("a title", [["above"], ["below"]], panels, "a note", shares_x=True)


@pytest.mark.parametrize(("figure_format", "begin"), [("png", PNG), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_written_as_png_and_in_the_format_that_is_asked_for(picture, tmp_path, figure_format, begin):
    save(picture.together(), tmp_path / "run.curves.png", figure_format)
    names = {f"run.curves.{suffix}" for suffix in ("png", figure_format)}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "run.curves.png").read_bytes().startswith(PNG)
    assert (tmp_path / f"run.curves.{figure_format}").read_bytes().startswith(begin)


def test_panels_over_one_axis_name_it_once_and_the_legend_names_each_curve_once(picture):
    figure = picture.together()
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "step"]
    (legend,) = figure.legends
    assert [text.get_text().partition(":")[0] for text in legend.get_texts()] == ["above", "below"]
    assert legend.get_title().get_text() == "a note"


def test_a_panel_alone_is_small_with_a_title_and_the_beginning_of_a_long_label(picture):
    figures = picture.alone()
    assert list(figures) == ["above", "below"]
    for name, figure in figures.items():
        assert figure.get_suptitle() == "a title"
        assert figure.axes[0].get_xlabel() == "step"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [name]
        assert figure.get_figwidth() < 6
        assert to_png(figure).startswith(PNG)
