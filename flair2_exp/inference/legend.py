"""What a class raster's numbers mean: a style for QGIS and a picture, both beside the raster."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from flair2_exp.files import replacing, write_bytes
from flair2_exp.nomenclature import Nomenclature

_DOCTYPE: Final = b"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def write_legend(raster: Path, nomenclature: Nomenclature) -> tuple[Path, Path]:
    """Write NAME.qml, which QGIS finds by itself, and NAME.legend.png beside a class raster.

    Returns:
        Their paths.

    Raises:
        OSError: One cannot be written.
    """
    style, picture = raster.with_suffix(".qml"), raster.with_suffix(".legend.png")
    write_style(style, nomenclature)
    write_picture(picture, nomenclature)
    return style, picture


def write_style(path: Path, nomenclature: Nomenclature) -> None:
    """Write a QGIS layer style: each class's value with its colour and name.

    Raises:
        OSError: It cannot be written.
    """
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for each in nomenclature.classes:
        ElementTree.SubElement(
            palette,
            "paletteEntry",
            value=str(each.value),
            label=each.name,
            color=each.colour,
            alpha="255",
        )
    ElementTree.indent(root)
    write_bytes(path, _DOCTYPE + ElementTree.tostring(root, encoding="utf-8"))


def write_picture(path: Path, nomenclature: Nomenclature) -> None:
    """Draw the classes' colours, values and names as a PNG.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes = nomenclature.classes
    # "$" begins mathematics in matplotlib's texts.
    handles = [
        Patch(facecolor=each.colour, edgecolor="#808080", label=_escaped(each.value, each.name))
        for each in classes
    ]
    columns = -(-len(classes) // 30)
    figure = Figure(figsize=(3.2 * columns, 0.25 * min(len(classes), 30) + 0.3), dpi=150)
    FigureCanvasAgg(figure)
    figure.legend(handles=handles, loc="center", frameon=False, ncols=columns)
    with replacing(path) as fresh:
        # The version of matplotlib, which it would note, does not belong to a legend.
        figure.savefig(fresh, format="png", bbox_inches="tight", metadata={"Software": None})


def _escaped(value: int, name: str) -> str:
    return f"{value}  {name}".replace("$", r"\$")
