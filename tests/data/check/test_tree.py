"""The tree checker: sound trees yield nothing, every damage is found by kind and file, once."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flair2_exp.config.data import DatasetConfig, S2PreprocConfig
from flair2_exp.data.check import tree as check
from flair2_exp.data.check.findings import Finding
from flair2_exp.data.check.tiff import Header, TruncatedError, read_header
from flair2_exp.data.check.tree import check_tree, require_sound
from flair2_exp.data.layout import Folders, locate
from flair2_exp.errors import DataError
from tests.commands import Answer, answer
from tests.data.trees import AREAS, PRODUCTS, TEST_AREA, Tree, groups_of, write_raster, write_tree

ROOT = Path(__file__).parents[3]
AREA = "D004_2021/Z1_NN"
OTHER = "D006_2020/Z2_UF"
PATCH = "IMG_000001"

Expected = tuple[str, Path, str]
"""Kind, path, subject of a finding."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("pristine")).root


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Tree:
    return Tree(Path(shutil.copytree(pristine, tmp_path / "tree")))


def located(root: str | Path) -> Folders:
    return locate(DatasetConfig(root=str(root)))


def test_a_worker_of_joblib_checks_with_several_processes_asked_for(pristine: Path) -> None:
    joblib = pytest.importorskip("joblib")
    check_it = joblib.delayed(check_tree)(located(pristine), headers_only=True, workers=2)
    (findings,) = joblib.Parallel(n_jobs=2)([check_it])
    assert [each for each in findings if each.severity == "error"] == []


def found(tree: Tree, *, headers_only: bool = False, severity: str = "error") -> list[Expected]:
    findings = check_tree(located(tree.root), headers_only=headers_only)
    return sorted((f.kind, f.path, f.subject) for f in findings if f.severity == severity)


# --- damages ----------------------------------------------------------------------------------

Damage = Callable[[Tree], Iterable[Expected]]
Change = Callable[[Path], object]

FILES: dict[str, tuple[Callable[[Tree], Path], str]] = {
    "image": (lambda tree: tree.image(PATCH), PATCH),
    "mask": (lambda tree: tree.mask(PATCH), PATCH),
    "data": (lambda tree: tree.series(AREA, "data.npy"), AREA),
    "masks": (lambda tree: tree.series(AREA, "masks.npy"), AREA),
    "products": (lambda tree: tree.series(AREA, "products.txt"), AREA),
    "centroids": (lambda tree: tree.centroids, "centroids"),
    "centroid": (lambda tree: tree.centroids, PATCH),
    "metadata": (lambda tree: tree.metadata, "aerial_metadata"),
    "record": (lambda tree: tree.metadata, PATCH),
}
"""Files that a change to them alone damages, with the subject of the finding."""


def content(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def raster(pixels: NDArray[Any], dtype: str = "uint8") -> Change:
    return lambda path: write_raster(path, pixels, dtype=dtype)


def array(change: Callable[[Any], Any]) -> Change:
    return lambda path: np.save(path, change(np.load(path)))


def table(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda path: edit_json(path, change)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    old = json.loads(path.read_text())
    change(old)
    path.write_text(json.dumps(old))


def spoilt(file: str, kind: str, change: Change) -> Damage:
    def damage(tree: Tree) -> Iterable[Expected]:
        path = FILES[file][0](tree)
        change(path)
        yield kind, path, FILES[file][1]

    return damage


def damages(rows: dict[str, tuple[str, str, Change]]) -> dict[str, Damage]:
    return {name: spoilt(*row) for name, row in rows.items()}


DAMAGES = damages(
    {
        "an_image_cut_in_its_pixels": ("image", "truncated-raster", content(lambda old: old[:-1])),
        "an_image_cut_in_its_header": (
            "image",
            "unreadable-raster",
            content(lambda old: old[:100]),
        ),
        "a_mask_cut_in_its_pixels": ("mask", "truncated-raster", content(lambda old: old[:-500])),
        "an_image_without_a_byte": ("image", "empty-file", content(lambda _: b"")),
        "a_page_of_html_instead_of_an_image": (
            "image",
            "unreadable-raster",
            content(lambda _: b"<html>" + 5000 * b" not found "),
        ),
        "a_png_instead_of_a_mask": (
            "mask",
            "unreadable-raster",
            content(lambda _: b"\x89PNG\r\n\x1a\n" + bytes(500)),
        ),
        "an_image_of_four_bands": ("image", "wrong-bands", raster(np.ones((4, 32, 32)))),
        "a_mask_of_three_bands": ("mask", "wrong-bands", raster(np.ones((3, 32, 32)))),
        "an_image_of_uint16": ("image", "wrong-dtype", raster(np.ones((5, 32, 32)), "uint16")),
        "a_mask_of_floats": ("mask", "wrong-dtype", raster(np.ones((1, 32, 32)), "float32")),
        "a_mask_of_signed_bytes": ("mask", "wrong-dtype", raster(np.ones((1, 32, 32)), "int8")),
        "an_image_of_another_size": ("image", "wrong-shape", raster(np.ones((5, 64, 64)))),
        "an_image_that_is_no_square": ("image", "wrong-shape", raster(np.ones((5, 32, 31)))),
        "a_mask_smaller_than_its_image": ("mask", "shape-mismatch", raster(np.ones((1, 16, 16)))),
        "reflectances_cut_short": ("data", "truncated-array", content(lambda old: old[:-1])),
        "probabilities_cut_in_their_header": (
            "masks",
            "truncated-array",
            content(lambda old: old[:40]),
        ),
        "bytes_behind_an_array": ("data", "trailing-bytes", content(lambda old: old + b"more")),
        "text_instead_of_an_array": (
            "data",
            "unreadable-array",
            content(lambda _: 1000 * b"no array "),
        ),
        "an_array_without_a_byte": ("masks", "empty-file", content(lambda _: b"")),
        "a_missing_array": ("masks", "missing-file", Path.unlink),
        "reflectances_of_floats": (
            "data",
            "wrong-dtype",
            array(lambda old: old.astype(np.float32)),
        ),
        "probabilities_of_signed_integers": (
            "masks",
            "wrong-dtype",
            array(lambda old: old.astype(np.int8)),
        ),
        "reflectances_of_nine_bands": ("data", "wrong-channels", array(lambda old: old[:, :9])),
        "probabilities_of_one_channel": ("masks", "wrong-channels", array(lambda old: old[:, :1])),
        "a_single_frame_without_a_time_axis": (
            "data",
            "wrong-dimensions",
            array(lambda old: old[0]),
        ),
        "an_array_of_no_acquisition": ("data", "no-acquisitions", array(lambda old: old[:0])),
        "arrays_of_other_numbers_of_acquisitions": (
            "masks",
            "series-mismatch",
            array(lambda old: old[:-1]),
        ),
        "arrays_of_other_sizes": ("masks", "series-mismatch", array(lambda old: old[..., :-1])),
        "pickled_objects": (
            "data",
            "object-array",
            array(lambda _: np.array([os.system, "echo"], dtype=object)),
        ),
        "a_product_line_without_a_date": (
            "products",
            "undated-product",
            content(lambda old: old.replace(b"20210930T103029", b"yesterday")),
        ),
        "a_product_of_30_february": (
            "products",
            "undated-product",
            content(lambda old: old.replace(b"20210105T103429", b"20210230T103429")),
        ),
        "a_product_line_too_few": (
            "products",
            "product-count",
            content(lambda old: old.partition(b"\n")[2]),
        ),
        "a_product_line_too_many": (
            "products",
            "product-count",
            content(lambda old: old + PRODUCTS[0].encode()),
        ),
        "products_without_a_byte": ("products", "empty-file", content(lambda _: b"")),
        "products_that_are_no_text": (
            "products",
            "unreadable-text",
            content(lambda _: b"\xff\xfe" * 100),
        ),
        "missing_products": ("products", "missing-file", Path.unlink),
        "centroids_without_a_byte": ("centroids", "empty-file", content(lambda _: b"")),
        "broken_centroids": ("centroids", "bad-json", content(lambda old: old[:-1])),
        "centroids_in_a_list": ("centroids", "bad-json", content(lambda _: b"[[1, 2]]")),
        "metadata_nested_without_end": ("metadata", "bad-json", content(lambda _: 200_000 * b"[")),
        "metadata_that_are_no_text": (
            "metadata",
            "bad-json",
            content(lambda _: b"\xff\xfe\xff" * 9),
        ),
        "a_patch_twice_in_the_centroids": (
            "centroid",
            "duplicate-key",
            content(lambda old: b'{"IMG_000001.tif": [1, 1], ' + old[1:]),
        ),
        "a_patch_without_centroid": (
            "centroid",
            "missing-centroid",
            table(lambda old: old.pop(f"{PATCH}.tif")),
        ),
        "a_centroid_outside_its_area": (
            "centroid",
            "centroid-outside",
            table(lambda old: old.update({f"{PATCH}.tif": [24, 48]})),
        ),
        "a_centroid_above_its_area": (
            "centroid",
            "centroid-outside",
            table(lambda old: old.update({f"{PATCH}.tif": [-1, 24]})),
        ),
        "a_centroid_too_near_the_upper_border": (
            "centroid",
            "centroid-near-border",
            table(lambda old: old.update({f"{PATCH}.tif": [19, 24]})),
        ),
        "a_centroid_too_near_the_right_border": (
            "centroid",
            "centroid-near-border",
            table(lambda old: old.update({f"{PATCH}.tif": [24, 29]})),
        ),
        "a_patch_without_metadata": (
            "record",
            "missing-metadata",
            table(lambda old: old.pop(PATCH)),
        ),
    }
)
"""Damages that the headers tell."""

DEEP = damages(
    {
        "a_mask_with_a_zero": (
            "mask",
            "bad-mask-values",
            raster(np.arange(1024).reshape(1, 32, 32) % 19),
        ),
        "a_mask_with_a_twentieth_class": (
            "mask",
            "bad-mask-values",
            raster(1 + np.arange(1024).reshape(1, 32, 32) % 20),
        ),
    }
)
"""Damages that only pixels and values tell."""

STRANGE = damages(
    {
        "a_blank_image": ("image", "blank-image", raster(np.zeros((5, 32, 32)))),
        "a_blank_series": ("data", "blank-series", array(np.zeros_like)),
        "a_patch_of_an_unknown_year": (
            "record",
            "unknown-year",
            table(lambda old: old[PATCH].update(date="2017-07-09")),
        ),
        "metadata_of_another_zone": (
            "record",
            "misplaced-metadata",
            table(lambda old: old[PATCH].update(zone="Z9_UU")),
        ),
    }
)
"""What earns a warning, and no error."""


def damage(into: dict[str, Damage]) -> Callable[[Damage], Damage]:
    def add(function: Damage) -> Damage:
        into[function.__name__] = function
        return function

    return add


@damage(DAMAGES)
def an_image_with_a_block_never_written(tree: Tree) -> Iterable[Expected]:
    with rasterio.open(
        tree.image(PATCH), "w", driver="GTiff", count=5, height=32, width=32, dtype="uint8",
        SPARSE_OK=True, crs="EPSG:2154", transform=rasterio.Affine(1, 0, 9, 0, -1, 9),
    ):  # fmt: skip
        pass
    yield "truncated-raster", tree.image(PATCH), PATCH


@damage(DAMAGES)
def an_image_without_its_mask(tree: Tree) -> Iterable[Expected]:
    tree.mask(PATCH).unlink()
    yield "missing-mask", tree.image(PATCH), PATCH


@damage(DAMAGES)
def a_test_image_without_its_mask(tree: Tree) -> Iterable[Expected]:
    copy = tree.image("IMG_000005").with_name("IMG_000006.tif")
    shutil.copy(tree.image("IMG_000005"), copy)
    for table in (tree.centroids, tree.metadata):
        text = table.read_text().replace("IMG_000005", "IMG_000006")
        table.write_text(json.dumps(json.loads(text) | json.loads(table.read_text())))
    yield "missing-mask", copy, "IMG_000006"


@damage(DAMAGES)
def a_mask_without_its_image(tree: Tree) -> Iterable[Expected]:
    tree.image(PATCH).unlink()
    yield "missing-image", tree.mask(PATCH), PATCH


@damage(DAMAGES)
def masks_of_an_area_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.folder("labels", AREA))
    yield "missing-area", tree.folder("labels", AREA), AREA


@damage(DAMAGES)
def images_of_an_area_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.folder("aerial", AREA))
    yield "missing-area", tree.folder("aerial", AREA), AREA


@damage(DAMAGES)
def an_area_emptied_of_its_images(tree: Tree) -> Iterable[Expected]:
    for patch in AREAS[AREA]:
        tree.image(patch).unlink()
    yield "empty-area", tree.folder("aerial", AREA), AREA


@damage(DAMAGES)
def the_series_of_an_area_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.folder("sen", AREA))
    yield "missing-area", tree.folder("sen", AREA), AREA


@damage(DAMAGES)
def all_training_masks_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.root / "flair_labels_train")
    yield "missing-part", Path("labels_train"), "labels_train"


@damage(DAMAGES)
def all_training_series_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.root / "flair_sen_train")
    yield "missing-part", Path("satellite_train"), "satellite_train"


@damage(DAMAGES)
def all_test_images_missing(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.root / "flair_2_aerial_test")
    yield "missing-part", Path("aerial_test"), "aerial_test"


@damage(DAMAGES)
def a_patch_in_two_areas(tree: Tree) -> Iterable[Expected]:
    copy = tree.folder("aerial", OTHER) / "img" / f"{PATCH}.tif"
    shutil.copy(tree.image(PATCH), copy)
    shutil.copy(tree.mask(PATCH), tree.folder("labels", OTHER) / "msk" / "MSK_000001.tif")
    yield "duplicate-patch", copy, PATCH


@damage(DAMAGES)
def a_training_patch_in_the_test_tree(tree: Tree) -> Iterable[Expected]:
    copy = tree.folder("aerial", TEST_AREA) / "img" / f"{PATCH}.tif"
    shutil.copy(tree.image(PATCH), copy)
    shutil.copy(tree.mask(PATCH), tree.folder("labels", TEST_AREA) / "msk" / "MSK_000001.tif")
    yield "duplicate-patch", copy, PATCH


@damage(DAMAGES)
def an_area_in_both_trees(tree: Tree) -> Iterable[Expected]:
    for part in ("aerial", "labels", "sen"):
        copy = tree.root / f"flair_2_{part}_test" / AREA
        shutil.copytree(tree.folder(part, AREA), copy)
    copy = tree.root / "flair_2_aerial_test" / AREA
    yield "duplicate-area", copy, AREA
    for patch in AREAS[AREA]:
        yield "duplicate-patch", copy / "img" / f"{patch}.tif", patch


@damage(DAMAGES)
def an_image_with_a_foreign_name(tree: Tree) -> Iterable[Expected]:
    wrong = tree.image(PATCH).with_name("img-1.tif")
    tree.image(PATCH).rename(wrong)
    yield "misnamed-file", wrong, AREA
    yield "missing-image", tree.mask(PATCH), PATCH


@damage(DAMAGES)
def a_mask_among_the_images(tree: Tree) -> Iterable[Expected]:
    wrong = tree.image(PATCH).with_name("MSK_000001.tif")
    shutil.copy(tree.mask(PATCH), wrong)
    yield "misnamed-file", wrong, AREA


@damage(DAMAGES)
def a_domain_with_a_foreign_name(tree: Tree) -> Iterable[Expected]:
    wrong = tree.root / "flair_aerial_train" / "D4_2021"
    shutil.copytree(tree.root / "flair_aerial_train" / "D004_2021", wrong)
    yield "misnamed-folder", wrong, "aerial"


@damage(DAMAGES)
def an_area_with_a_foreign_name(tree: Tree) -> Iterable[Expected]:
    wrong = tree.root / "flair_aerial_train" / "D004_2021" / "copy of Z1_NN"
    shutil.copytree(tree.folder("aerial", AREA), wrong)
    yield "misnamed-folder", wrong, "aerial"


@damage(DAMAGES)
def images_in_a_folder_of_another_name(tree: Tree) -> Iterable[Expected]:
    wrong = tree.folder("aerial", AREA) / "images"
    (tree.folder("aerial", AREA) / "img").rename(wrong)
    yield "misnamed-folder", wrong, AREA


@damage(DAMAGES)
def a_link_to_nowhere(tree: Tree) -> Iterable[Expected]:
    tree.image(PATCH).unlink()
    tree.image(PATCH).symlink_to(tree.root / "gone.tif")
    yield "broken-link", tree.image(PATCH), PATCH


@damage(DAMAGES)
def a_folder_called_like_an_image(tree: Tree) -> Iterable[Expected]:
    tree.image(PATCH).unlink()
    tree.image(PATCH).mkdir()
    yield "not-a-file", tree.image(PATCH), PATCH


@damage(DAMAGES)
def an_array_called_after_another_area(tree: Tree) -> Iterable[Expected]:
    path = tree.series(AREA, "data.npy")
    wrong = path.with_name("SEN2_sp_D006_2020-Z2_UF_data.npy")
    path.rename(wrong)
    yield "misnamed-file", wrong, AREA
    yield "missing-file", path, AREA


@damage(DAMAGES)
def no_centroids(tree: Tree) -> Iterable[Expected]:
    tree.centroids.unlink()
    yield "missing-part", Path("centroids"), "centroids"


@damage(DAMAGES)
def no_metadata(tree: Tree) -> Iterable[Expected]:
    tree.metadata.unlink()
    yield "missing-part", Path("aerial_metadata"), "aerial_metadata"


@damage(DEEP)
def an_image_with_scrambled_pixels(tree: Tree) -> Iterable[Expected]:
    path = tree.image(PATCH)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32))
    write_raster(path, pixels, (9.0, 9.0), compress="deflate")
    with rasterio.open(path) as file:
        place = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[place : place + 200] = bytes(200)
    path.write_bytes(bytes(content))
    yield "damaged-raster", path, PATCH


@damage(DEEP)
def a_probability_above_a_hundred(tree: Tree) -> Iterable[Expected]:
    masks = np.load(tree.series(AREA, "masks.npy"))
    masks[2, 1, 3, 4] = 101
    np.save(tree.series(AREA, "masks.npy"), masks)
    yield "bad-probability", tree.series(AREA, "masks.npy"), AREA


@damage(STRANGE)
def the_mask_of_another_place(tree: Tree) -> Iterable[Expected]:
    shutil.copy(tree.mask("IMG_000002"), tree.mask(PATCH))
    yield "misplaced-mask", tree.mask(PATCH), PATCH


@damage(STRANGE)
def no_test_labels(tree: Tree) -> Iterable[Expected]:
    shutil.rmtree(tree.root / "flair_2_labels_test")
    yield "labels-withheld", tree.root / "flair_2_aerial_test", "labels_test"


@damage(STRANGE)
def labels_of_the_test_set_in_empty_folders(tree: Tree) -> Iterable[Expected]:
    tree.mask("IMG_000005").unlink()
    yield "labels-withheld", tree.root / "flair_2_labels_test", "labels_test"


@damage(STRANGE)
def a_series_that_no_patch_uses(tree: Tree) -> Iterable[Expected]:
    unused = tree.root / "flair_sen_train" / "D009_2019" / "Z1_NN"
    (unused / "sen").mkdir(parents=True)
    yield "unused-area", unused, "D009_2019/Z1_NN"


@damage(STRANGE)
def somebodys_notes(tree: Tree) -> Iterable[Expected]:
    for folder in (tree.root / "flair_aerial_train", tree.image(PATCH).parent):
        (folder / "notes.md").write_text("look at this one")
    yield "unexpected-file", tree.root / "flair_aerial_train" / "notes.md", "aerial"
    yield "unexpected-file", tree.image(PATCH).with_name("notes.md"), AREA


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_once_by_kind_and_file(tree: Tree, name: str) -> None:
    expected = sorted(DAMAGES[name](tree))
    assert found(tree, headers_only=True) == expected
    assert found(tree) == expected


@pytest.mark.parametrize("name", DEEP)
def test_damage_of_values_is_found_where_values_are_read(tree: Tree, name: str) -> None:
    expected = sorted(DEEP[name](tree))
    assert found(tree) == expected
    assert found(tree, headers_only=True) == []


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_merely_strange_is_a_warning(tree: Tree, name: str) -> None:
    expected = sorted(STRANGE[name](tree))
    assert found(tree, severity="warning") == expected
    assert found(tree) == []


BAD_CENTROIDS = ([24], [24, 24, 24], "24, 24", None, [24, "24"], [24, None], [24.5, 24], [True, 24],
                 {"row": 24}, [1e400, 24])  # fmt: skip


@pytest.mark.parametrize("value", BAD_CENTROIDS, ids=str)
def test_a_malformed_centroid_is_found(tree: Tree, value: object) -> None:
    edit_json(tree.centroids, lambda content: content.update({f"{PATCH}.tif": value}))
    assert found(tree, headers_only=True) == [("malformed-centroid", tree.centroids, PATCH)]


BAD_FIELDS: dict[str, list[object]] = {
    "patch_centroid_x": ["950000", None, True, float("nan")],
    "patch_centroid_y": [[6_500_000], float("inf"), 10**400],
    "patch_centroid_z": ["high"],
    "date": ["09/07/2021", "2021-02-30", 20210709, ""],
    "time": ["10:33", "25h10", "10h60", 1033],
    "camera": [None, 20],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD_FIELDS.items() for value in values],
    ids=lambda value: str(value)[:20],
)
def test_a_malformed_metadata_field_is_found(tree: Tree, field: str, value: object) -> None:
    edit_json(tree.metadata, lambda content: content[PATCH].update({field: value}))
    assert found(tree, headers_only=True) == [("malformed-metadata", tree.metadata, PATCH)]


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_missing_metadata_field_is_found_and_named(tree: Tree, field: str) -> None:
    edit_json(tree.metadata, lambda content: content[PATCH].pop(field))
    (finding,) = check_tree(located(tree.root), headers_only=True)
    assert finding.kind == "malformed-metadata"
    assert field in finding.message


def test_every_damage_is_told_in_one_go(tree: Tree) -> None:
    truncate(tree.image("IMG_000003"))
    tree.mask(PATCH).unlink()
    array(lambda old: old[:, :1])(tree.series(TEST_AREA, "masks.npy"))
    truncate(tree.metadata)
    kinds = [finding.kind for finding in check_tree(located(tree.root))]
    assert sorted(kinds) == ["bad-json", "missing-mask", "truncated-raster", "wrong-channels"]


# --- sound trees ------------------------------------------------------------------------------


@pytest.mark.parametrize("headers_only", [True, False])
def test_a_sound_tree_yields_nothing(tree: Tree, headers_only: bool) -> None:
    assert check_tree(located(tree.root), headers_only=headers_only) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_find_what_one_finds(tree: Tree, workers: int) -> None:
    truncate(tree.image("IMG_000003"))
    seen: list[tuple[int, int]] = []
    findings = check_tree(
        located(tree.root), workers=workers, report=lambda done, total: seen.append((done, total))
    )
    assert [finding.path for finding in findings] == [tree.image("IMG_000003")]
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_real_patches_are_sound() -> None:
    place = os.environ.get("FLAIR2_REAL_DIR")
    if not place:
        pytest.skip("FLAIR2_REAL_DIR names no folder of real patches")
    assert check_tree(located(place)) == []


def test_unsorted_products_and_blank_lines_are_sound(tree: Tree) -> None:
    text = "\n\n".join(reversed(PRODUCTS)) + "\n\n"
    tree.series(AREA, "products.txt").write_text(text)
    assert check_tree(located(tree.root)) == []


def test_a_crop_that_touches_the_border_is_sound(tree: Tree) -> None:
    corners = {"IMG_000001.tif": [20, 28], "IMG_000002.tif": [28.0, 20]}
    edit_json(tree.centroids, lambda content: content.update(corners))
    assert check_tree(located(tree.root)) == []
    kinds = {finding.kind for finding in check_tree(located(tree.root), super_patch=48)}
    assert kinds == {"centroid-near-border"}


def test_hidden_files_and_linked_folders_are_no_damage(tree: Tree, tmp_path: Path) -> None:
    (tree.root / "flair_aerial_train" / ".DS_Store").write_bytes(b"\0")
    area = tree.folder("aerial", AREA)
    area.rename(tmp_path / "elsewhere")
    area.symlink_to(tmp_path / "elsewhere")
    assert check_tree(located(tree.root)) == []


def test_what_does_not_matter_is_not_asked_for(tree: Tree) -> None:
    shutil.rmtree(tree.root / "flair_sen_train")
    truncate(tree.centroids)
    tree.metadata.unlink()
    assert check_tree(located(tree.root), series=False, metadata=False) == []


def test_a_tree_of_training_data_alone_is_sound(tree: Tree) -> None:
    for folder in tree.root.glob("flair_2_*"):
        shutil.rmtree(folder)
    assert check_tree(located(tree.root)) == []


def test_a_tree_without_a_patch_is_no_sound_tree(tmp_path: Path) -> None:
    (tmp_path / "aerial").mkdir()
    (tmp_path / "labels").mkdir()
    folders = Folders({f"{name}_train": tmp_path / name for name in ("aerial", "labels")})
    findings = check_tree(folders, series=False)
    assert [(finding.kind, finding.path) for finding in findings] == [
        ("empty-part", tmp_path / "aerial")
    ]


def test_a_tree_of_another_patch_size_is_as_sound(tmp_path: Path) -> None:
    assert check_tree(located(write_tree(tmp_path, size=64, super_area=60).root)) == []


# --- damage of any kind -----------------------------------------------------------------------


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_found(pristine: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(pristine)))
    content = path.read_bytes()
    # A list of products may lose its last line break.
    keep = data.draw(st.integers(0, len(content) - (2 if path.suffix == ".txt" else 1)))
    # A product name may lose its tail too: the date is all that is read of it.
    lost_line = content[:keep].count(b"\n") < len(PRODUCTS) - 1 or keep == 0
    try:
        path.write_bytes(content[:keep])
        paths = {finding.path for finding in check_tree(located(pristine), headers_only=True)}
    finally:
        path.write_bytes(content)
    if path.suffix != ".txt" or lost_line:
        assert paths == {path}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_never_end_a_check(pristine: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(pristine)))
    content = path.read_bytes()
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where bytes matter most.
        last = min(len(content), data.draw(st.sampled_from([16, 200, len(content)]))) - 1
        damaged[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            findings = check_tree(located(pristine))
    finally:
        path.write_bytes(content)
    for finding in findings:
        assert isinstance(finding, Finding)
        assert finding.message


# --- headers of rasters -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@example(
    count=2, height=1, width=38, dtype="uint16",
    options={
        "compress": "none", "interleave": "band", "bigtiff": "yes", "endianness": "little",
        "tiled": False,
    },
)  # fmt: skip
@given(
    count=st.integers(1, 6),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    dtype=st.sampled_from(["uint8", "int8", "uint16", "float32"]),
    options=st.fixed_dictionaries(
        {
            "compress": st.sampled_from(["none", "deflate", "lzw", "zstd", "packbits"]),
            "interleave": st.sampled_from(["pixel", "band"]),
            "bigtiff": st.sampled_from(["yes", "no"]),
            "endianness": st.sampled_from(["little", "big"]),
            "tiled": st.booleans(),
        }
    ),
)
def test_a_raster_of_any_layout_is_read_and_missed_from_its_last_byte_on(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    height: int,
    width: int,
    dtype: str,
    options: dict[str, Any],
) -> None:
    path = tmp_path_factory.mktemp("raster") / "a.tif"
    if options["tiled"]:
        options = options | {"blockxsize": 16, "blockysize": 32}
    pixels = np.random.default_rng(0).integers(0, 120, (count, height, width))
    write_raster(path, pixels, (9.0, 9.0), dtype=dtype, **options)
    assert read_header(path) == Header(count, height, width, dtype)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(TruncatedError):
        read_header(path)
    for keep in (len(content) // 2, 8, 3):
        path.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=r"."):
            read_header(path)


def test_a_header_of_absurd_size_is_damage(tree: Tree) -> None:
    path = tree.mask(PATCH)
    content = path.read_bytes()
    for tag in (256, 257):  # width and height, a SHORT each
        entry = struct.pack("<HHIHH", tag, 3, 1, 32, 0)
        assert content.count(entry) == 1
        content = content.replace(entry, struct.pack("<HHIHH", tag, 3, 1, 60_000, 0))
    path.write_bytes(content)
    assert found(tree) == [("truncated-raster", path, PATCH)]


def test_a_raster_much_larger_than_a_patch_is_never_decoded(tree: Tree) -> None:
    no_class = np.zeros((1, 4104, 4104), dtype=np.uint8)
    write_raster(tree.mask(PATCH), no_class, compress="deflate")
    assert found(tree) == [("shape-mismatch", tree.mask(PATCH), PATCH)]


# --- before a run -----------------------------------------------------------------------------

ALL = frozenset({"aerial", "satellite", "metadata"})


def sound(tree: Tree, reads: frozenset[str] = ALL, size: int = 40, **options: str) -> list[Finding]:
    groups = groups_of(tree.root, s2_preproc=S2PreprocConfig(size=size), **options)
    return require_sound(groups, reads)


def test_a_sound_tree_may_run_and_its_warnings_are_handed_on(tree: Tree) -> None:
    assert sound(tree) == []
    shutil.rmtree(tree.root / "flair_2_labels_test")
    assert [warning.kind for warning in sound(tree)] == ["labels-withheld"]


def test_a_tree_that_passed_is_not_checked_again_and_a_damaged_one_is(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Folders] = []

    def counted(folders: Folders, **options: object) -> list[Finding]:
        seen.append(folders)
        return check_tree(folders, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "check_tree", counted)
    whole = tree.image(PATCH).read_bytes()
    truncate(tree.image(PATCH))
    for _ in range(2):
        with pytest.raises(DataError):
            sound(tree)
    tree.image(PATCH).write_bytes(whole)
    assert sound(tree) == sound(tree) == sound(tree, on_damaged="skip") == []
    assert len(seen) == 3
    sound(tree, size=32)
    sound(tree, ALL - {"satellite"})
    assert len(seen) == 5


def test_a_damaged_tree_may_not_run(tree: Tree) -> None:
    for area, patches in AREAS.items():
        if area != TEST_AREA:
            for patch in patches:
                truncate(tree.image(patch))
    with pytest.raises(DataError) as told:
        sound(tree)
    message = str(told.value)
    assert all(str(tree.image(f"IMG_00000{number}")) in message for number in (1, 2, 3))
    assert str(tree.image("IMG_000004")) not in message
    assert "and 1 more" in message
    assert "4 truncated-raster" in message
    assert message.count("\n") == 1
    assert [finding.kind for finding in sound(tree, on_damaged="skip")] == ["truncated-raster"] * 4


def test_a_crop_too_large_for_the_data_is_told_as_such(tree: Tree) -> None:
    with pytest.raises(DataError) as told:
        sound(tree, size=56)
    message = str(told.value)
    assert message.startswith("s2_preproc.size=56 leaves the areas' series: ")
    assert "Choose a smaller s2_preproc.size" in message
    truncate(tree.image(PATCH))
    with pytest.raises(
        DataError, match=r"damaged data set.*\n.*flair2-exp check ROOT --super-patch 56`"
    ):
        sound(tree, size=56)


# --- the command line -------------------------------------------------------------------------


def test_the_command_passes_a_sound_tree(tree: Tree) -> None:
    done = answer("check", str(tree.root), "--workers", "1")
    assert done == Answer(0, "sound: 5 patches, 0 errors, 0 warnings\n", "")


def test_the_command_shows_damage_in_a_table(tree: Tree) -> None:
    truncate(tree.image(PATCH))
    tree.mask("IMG_000002").unlink()
    done = answer("check", str(tree.root), "--workers", "1", "--limit", "1", "--headers-only")
    assert done.status == 1
    out = done.out
    assert "flair_aerial_train/D004_2021/Z1_NN/img/IMG_000001.tif" in out
    assert "truncated-raster" in out
    assert "and 1 more" in out
    assert "damaged: 5 patches, 2 errors, 0 warnings (headers only)" in out


@pytest.mark.parametrize("to_file", [True, False])
def test_the_command_writes_json(
    tree: Tree,
    tmp_path: Path,
    to_file: bool,
) -> None:
    truncate(tree.image(PATCH))
    target = str(tmp_path / "findings.json") if to_file else "-"
    done = answer("check", str(tree.root), "--workers", "1", "--json", target)
    assert done.status == 1
    content = json.loads(Path(target).read_text() if to_file else done.out)
    assert content["kinds"] == {"truncated-raster": 1}
    assert (content["patches"], content["errors"], content["warnings"]) == (5, 1, 0)
    (finding,) = content["findings"]
    assert finding["path"] == "flair_aerial_train/D004_2021/Z1_NN/img/IMG_000001.tif"
    assert finding["subject"] == PATCH


def test_findings_that_cannot_be_written_are_still_shown(tree: Tree, tmp_path: Path) -> None:
    truncate(tree.image(PATCH))
    told = answer("check", str(tree.root), "--workers", "1", "--json", str(tmp_path))
    assert told.status == 2
    assert "Is a directory" in told.err
    assert "truncated-raster" in told.out


def command(tree: Tree, **environment: str) -> subprocess.Popen[str]:
    script = str(ROOT / "scripts" / "check.py")
    return subprocess.Popen(
        [sys.executable, script, str(tree.root), "--workers", "1"],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_closed_pipe_ends_the_command_without_a_word(tree: Tree) -> None:
    with command(tree) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_name_that_no_terminal_shows_is_told(tree: Tree) -> None:
    folder = os.fsencode(tree.image(PATCH).parent)
    Path(os.fsdecode(folder + b"/IMG_\xff.tif")).touch()
    with command(tree, PYTHONIOENCODING="ascii:strict") as process:
        out, errors = process.communicate()
    assert "IMG_\\udcff.tif" in out
    assert errors == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["--json", "-"],
        ["TREE", "--workers", "0"],
        ["TREE", "--json", "/no/x", "--workers", "1"],
    ],
)
def test_wrong_usage_ends_with_status_two(tree: Tree, arguments: list[str]) -> None:
    arguments = [str(tree.root) if word == "TREE" else word for word in arguments]
    assert answer("check", *arguments).status == 2


def test_the_command_runs_in_processes_without_loading_torch(tree: Tree) -> None:
    truncate(tree.image(PATCH))
    command = [sys.executable, str(ROOT / "scripts" / "check.py"), str(tree.root)]
    done = subprocess.run(
        [*command, "--workers", "2"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "truncated-raster" in done.stdout
    assert done.stderr == ""
    code = "import sys, flair2_exp.data.check.tree; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout == "False\n"
