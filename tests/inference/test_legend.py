"""Styles and pictures of classes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import rasterio

from flair2_exp.data.grids import quiet
from flair2_exp.inference.legend import write_legend
from flair2_exp.nomenclature import FLAIR_19, LandCover, Nomenclature

ODD = Nomenclature(
    (LandCover(3, 'a <b> & "c" $x_1$', "#0102ff"), LandCover(250, "forêt", "#ABCDEF")), 2
)
MANY = Nomenclature(tuple(LandCover(n, f"class {n}", "#112233") for n in range(100)), 90)


@pytest.mark.parametrize("nomenclature", [FLAIR_19, ODD, MANY])
def test_the_style_is_xml_that_names_every_class_with_value_and_colour(
    nomenclature: Nomenclature, tmp_path: Path
) -> None:
    style, picture = write_legend(tmp_path / "landcover.tif", nomenclature)
    assert (style.name, picture.name) == ("landcover.qml", "landcover.legend.png")
    root = ElementTree.parse(style).getroot()
    assert root.tag == "qgis"
    renderer = root.find("pipe/rasterrenderer")
    assert renderer is not None
    assert renderer.attrib["type"] == "paletted"
    entries = [
        (int(each.attrib["value"]), each.attrib["label"], each.attrib["color"])
        for each in renderer.iterfind("colorPalette/paletteEntry")
    ]
    assert entries == [(each.value, each.name, each.colour) for each in nomenclature.classes]


def test_the_picture_shows_the_colours_and_is_the_same_each_time(tmp_path: Path) -> None:
    _, picture = write_legend(tmp_path / "a.tif", FLAIR_19)
    with quiet(), rasterio.open(picture) as file:
        pixels = file.read()
        colours = set(map(tuple, pixels[:3].reshape(3, -1).T.tolist()))
    for each in FLAIR_19.classes:
        assert tuple(bytes.fromhex(each.colour[1:])) in colours
    assert write_legend(tmp_path / "b.tif", FLAIR_19)[1].read_bytes() == picture.read_bytes()


def test_qgis_loads_the_style(tmp_path: Path) -> None:
    core = pytest.importorskip("qgis.core", reason="QGIS is not installed")
    style, _ = write_legend(tmp_path / "landcover.tif", FLAIR_19)
    layer = core.QgsRasterLayer(str(tmp_path / "landcover.tif"))
    assert layer.loadNamedStyle(str(style))[1]
