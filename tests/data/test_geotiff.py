"""GeoTIFF pairs of one's own: what is read of them, what is wrong with them, and a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from flair2_exp.config.data import AugConfig, DataConfig, DataGroups, DatasetConfig, SplitConfig
from flair2_exp.data.datamodule import FlairDataModule
from flair2_exp.data.fingerprint import fingerprint
from flair2_exp.data.source import DataSource, open_source
from flair2_exp.errors import ConfigError, DataError, FlairError
from flair2_exp.lifecycle.folder import RunFolder
from tests.commands import answer
from tests.data.pairs import BANDS, CLASSES, IGNORED, lines_of, rewrite, write_pairs, write_table
from tests.data.trees import write_raster

AERIAL = frozenset({"aerial"})
NAMES = (*(name for _, name, _ in CLASSES), "other")


def groups_of(root: Path, *, data: dict[str, Any] | None = None, **options: Any) -> DataGroups:
    dataset = DatasetConfig(
        name="geotiff",
        _target_="flair2_exp.data.geotiff.GeoTiffSource",
        root=str(root),
        options={"ignored": [IGNORED]} | options,
    )
    of_data = {"workers": 0, "batch_size": 2} | (data or {})
    return DataGroups(data=DataConfig(**of_data), dataset=dataset)


def source_of(root: Path, **options: Any) -> DataSource:
    return open_source(groups_of(root, **options), AERIAL)


def module(groups: DataGroups, **options: Any) -> FlairDataModule:
    data = FlairDataModule(groups, reads=AERIAL, **options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_pixels_and_classes_are_those_that_rasterio_reads(tmp_path: Path, kind: str) -> None:
    root = write_pairs(tmp_path / "pairs", kind=kind)
    data = module(groups_of(root))
    assert data.counts == {"train": 8, "validation": 2, "test": 4}
    assert (data.patch_size, data.bands, data.source.nomenclature.names) == (64, BANDS, NAMES)
    assert data.source.nomenclature.scored == len(CLASSES)
    indices = {value: index for index, (value, *_) in enumerate(CLASSES)} | {IGNORED: len(CLASSES)}
    top = {"uint8": 255.0, "uint16": 65_535.0, "float32": 1.0}[kind]
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        for at, name in enumerate(batch["patch_id"]):
            with rasterio.open(root / f"{name}.tif") as file:
                image = file.read().astype(np.float32) / top
            np.testing.assert_allclose(batch["image"][at].numpy(), image, rtol=1e-6)
            with rasterio.open(root / f"{name.replace('images', 'masks')}.tif") as file:
                label = np.vectorize(indices.get)(file.read(1))
            np.testing.assert_array_equal(batch["label"][at].numpy(), label)


def test_batches_of_workers_are_those_of_the_training_process(shared: Path) -> None:
    batches = [
        list(module(groups_of(shared, data={"workers": workers})).test_dataloader())
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert one["patch_id"] == other["patch_id"]
        assert one["image"].dtype == other["image"].dtype
        np.testing.assert_array_equal(one["image"].numpy(), other["image"].numpy())
        np.testing.assert_array_equal(one["label"].numpy(), other["label"].numpy())


def test_bands_come_by_name_in_the_wanted_order(shared: Path) -> None:
    data = module(groups_of(shared, data={"bands": ("green", "nir")}))
    assert data.bands == ("green", "nir")
    every = data.source.read(0).image
    assert every is not None
    np.testing.assert_array_equal(data.dataset("train").reader.read(0).image, every[[2, 0]])
    named = source_of(shared, bands=["a", "b", "c", "d"])
    assert named.bands == ("a", "b", "c", "d")


def test_a_divisor_of_ones_own_scales_the_pixels(shared: Path) -> None:
    data = module(groups_of(shared, divisor=10_000.0))
    raw = next(iter(data.test_dataloader()))
    scaled = data.on_after_batch_transfer(dict(raw), 0)["image"]
    np.testing.assert_allclose(scaled.numpy(), raw["image"].numpy() / 10_000.0, rtol=1e-6)


def test_classes_may_stand_in_yaml_and_in_the_options_and_unscored_ones_come_last(
    own: Path,
) -> None:
    listed = [{"value": v, "name": n, "colour": c, "scored": n != "forest"} for v, n, c in CLASSES]
    (own / "classes.yaml").write_text(json.dumps(listed))
    for classes in ("classes.yaml", listed):
        nomenclature = source_of(own, classes=classes).nomenclature
        assert nomenclature.names == ("field", "water", "road", "roof", "forest", "other")
        assert nomenclature.scored == 4


def test_areas_are_of_domains_where_the_table_names_some(own: Path) -> None:
    assert set(source_of(own).index.domains) == {f"area{number}" for number in range(7)}
    rewrite(own, [{**row, "domain": row["part"][0]} for row in lines_of(own)])
    index = source_of(own).index
    assert set(index.domains) == {"t", "v"}
    assert "t/area0" in index.area_names


def test_the_split_is_the_tables_or_by_seed_or_by_file(own: Path, tmp_path: Path) -> None:
    groups = groups_of(own)
    reference = DataGroups(
        data=groups.data, dataset=groups.dataset, split=SplitConfig(name="reference")
    )
    assert module(reference).counts["test"] == 4
    rewrite(own, [{k: v for k, v in row.items() if k != "part"} for row in lines_of(own)])
    with pytest.raises(DataError, match=r"does not say to which part 14 of 14.*\nUse split=ref"):
        module(groups)
    file = tmp_path / "split.yaml"
    file.write_text("train: [area0]\nvalidation: [area1]\ntest: [area2]\n")
    by_file = SplitConfig(name="file", file=str(file))
    named = DataGroups(data=groups.data, dataset=groups.dataset, split=by_file)
    assert module(named).counts == {"train": 2, "validation": 2, "test": 2}


def test_the_fingerprint_is_of_content_classes_and_parts(own: Path, tmp_path: Path) -> None:
    before = fingerprint(groups_of(own), AERIAL)
    (tmp_path / "elsewhere").symlink_to(own)
    assert fingerprint(groups_of(tmp_path / "elsewhere"), AERIAL) == before
    assert fingerprint(groups_of(own, divisor=9.0), AERIAL) != before
    mask = own / "masks" / "train_0_0.tif"
    content = mask.read_bytes()
    mask.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = fingerprint(groups_of(own), AERIAL)
    assert changed != before
    rows = [(value, name.upper(), colour) for value, name, colour in CLASSES]
    write_table(own / "classes.csv", ("value", "name", "colour"), rows)
    assert fingerprint(groups_of(own), AERIAL) not in (before, changed)


def _without(column: str) -> Any:
    return lambda row: {name: value for name, value in row.items() if name != column}


TABLES = {
    "a column is missing": (_without("area"), r"no column 'area'.*\nExpected a header line with"),
    "a word is no part": (lambda row: row | {"part": "val"}, r"line 2: part='val'; expected one"),
    "an id is there twice": (lambda row: row | {"id": "same"}, r"lines 2 and 3 are both patch"),
    "a path is empty": (lambda row: row | {"mask": ""}, r"line 2: mask is empty"),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_is_wrong_is_refused_with_its_line(own: Path, what: str) -> None:
    change, message = TABLES[what]
    rewrite(own, [change(row) for row in lines_of(own)])
    with pytest.raises(DataError, match=message) as refusal:
        source_of(own)
    assert str(refusal.value).count("\n") <= 1


CLASS_ROWS = {
    "a malformed colour": (("value,name,colour", "10,forest,green"), r"colour 'green'; expected #"),
    "no number": (("value,name,colour", "ten,forest,#000000"), r"class 1: .*\nExpected value"),
    "two of one value": (("value,name,colour", "1,a,#000000", "1,b,#000000"), "the value 1"),
    "neither true nor false": (("value,name,colour,scored", "1,a,#000000,perhaps"), "scored='per"),
    "nothing scored": (("value,name,colour,scored", "1,a,#000000,false"), "0 of 2 classes are sc"),
    "no line": (("value,name,colour",), "has a header line and nothing else"),
}


@pytest.mark.parametrize("what", CLASS_ROWS)
def test_classes_that_are_wrong_are_refused(own: Path, what: str) -> None:
    lines, message = CLASS_ROWS[what]
    (own / "classes.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=message) as refusal:
        source_of(own)
    assert str(refusal.value).count("\n") <= 1


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a table that is not there": ({"patches": "x.csv"}, r"x.csv cannot be read \(No such file"),
    "too few names": ({"bands": ["red"]}, r"dataset.options.bands: 1 names.*has 4 bands"),
    "an ignored class": ({"ignored": [10]}, r"mask value 10; expected"),
    "an unknown option": ({"band": ["red"]}, r"dataset.options.band: .*did you mean bands\?"),
    "a list for a number": ({"divisor": [1]}, r"dataset.options.divisor"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_are_wrong_are_refused(shared: Path, what: str) -> None:
    options, message = OPTIONS[what]
    with pytest.raises(FlairError, match=message) as refusal:
        source_of(shared, **options)
    assert str(refusal.value).count("\n") <= 1


def test_a_band_that_is_not_there_is_refused_with_the_nearest(shared: Path) -> None:
    with pytest.raises(ConfigError, match=r"no band 'blu'; did you mean blue\?"):
        open_source(groups_of(shared, data={"bands": ("blu",)}), AERIAL)


def test_what_the_data_lack_is_refused_with_a_way_on(shared: Path) -> None:
    for reads, words in (
        ({"aerial", "satellite"}, r"geotiff.*has no satellite series.*\nUse .*model=unet"),
        ({"aerial", "metadata"}, r"geotiff.*has no metadata.*\nUse .*metadata=off"),
    ):
        with pytest.raises(DataError, match=words):
            open_source(groups_of(shared), frozenset(reads))


def test_changes_of_brightness_of_wide_pixels_are_refused(shared: Path) -> None:
    groups = groups_of(shared)
    with pytest.raises(ConfigError, match=r"aug.brightness: images .* are uint16.*\nSet aug.bri"):
        module(DataGroups(data=groups.data, dataset=groups.dataset, aug=AugConfig(brightness=0.1)))


def _damage_size(root: Path) -> None:
    write_raster(root / "masks" / "test_0_0.tif", np.full((1, 32, 32), 10))


def _damage_missing(root: Path) -> None:
    (root / "masks" / "test_0_0.tif").unlink()


def _damage_bands(root: Path) -> None:
    write_raster(root / "images" / "test_0_0.tif", np.ones((3, 64, 64)), dtype="uint16")


HEADERS = {
    "another size": (_damage_size, r"test_0_0.tif: 1 x 32 x 32 .* instead of 1 x 64 x 64"),
    "a missing file": (_damage_missing, r"masks/test_0_0.tif: is not there"),
    "other bands": (_damage_bands, r"3 x 64 x 64 x uint16 .* instead of 4 x 64 x 64 x uint16"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_file_that_does_not_go_with_the_others_is_found_before_a_run(
    own: Path, what: str
) -> None:
    damage, message = HEADERS[what]
    damage(own)
    source = source_of(own)
    with pytest.raises(DataError, match=message):
        source.require_sound()
    position = source.index.ids.tolist().index("images/test_0_0")
    with pytest.raises(DataError, match="test_0_0"):
        source.read(position)


def test_a_mask_value_of_no_class_names_the_ways_out(own: Path) -> None:
    write_raster(own / "masks" / "test_0_0.tif", np.full((1, 64, 64), 77))
    source = source_of(own)
    position = source.index.ids.tolist().index("images/test_0_0")
    with pytest.raises(DataError, match=r"mask values 77 of no class.*options.ignored=\[77\]"):
        source.read(position)


def line_of(root: Path, pairs: Path, *words: str) -> tuple[str, ...]:
    return (
        "dataset=geotiff", f"dataset.root={pairs}", f"dataset.options.ignored=[{IGNORED}]",
        "preset=debug", "trainer=cpu", "tracking=off", f"paths.root={root}", *words,
    )  # fmt: skip


def test_commands_that_cannot_run_are_refused_before_anything_is_written(
    shared: Path, tmp_path: Path
) -> None:
    for words, message in (
        (("model=utt",), "dataset=geotiff (GeoTiffSource) has no satellite series"),
        (("model=unet", "metadata=on"), "has no metadata"),
        (("model=unet", "+loss.class_weights={forst:0.0}"), "did you mean forest"),
        (("model=unet", "data.bands=[grun,nir]"), "has no band 'grun'"),
        (("model=unet", "dataset.options.patch=x"), "did you mean patches?"),
    ):
        refused = answer(*line_of(tmp_path / "root", shared, *words))
        assert refused.status == 1
        assert message in refused.err
        assert refused.err.strip().count("\n") <= 1, refused.err
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_two_seeds_are_trained_and_reported_with_the_data_sets_own_classes(
    shared: Path, tmp_path: Path
) -> None:
    line = line_of(
        tmp_path, shared, "--multirun", "model=unet", "seed=1,2", "sweep.name=own",
        "trainer.limit_test_batches=null", "hydra.sweep.subdir='seed=${seed}'",
    )  # fmt: skip
    done = answer(*line)
    assert done.status == 0, done.err
    sweep = tmp_path / "multirun" / "own"
    folder = RunFolder(sweep / "seed=1")
    with np.load(folder.confusion) as counts:
        assert counts["classes"].tolist() == list(NAMES)
        assert counts["colours"].tolist() == [*(c for *_, c in CLASSES), "#000000"]
        assert counts["scored"] == len(CLASSES)
        scored = sum(  # pixels of no class are dropped (metric.other_pixels)
            int((rasterio.open(path).read(1) != IGNORED).sum())
            for path in (shared / "masks").glob("test_*.tif")
        )
        assert counts["confusion"].sum() == scored
    assert folder.panel_figure.exists()
    report = json.loads((sweep / "report" / "leaderboard.json").read_text())
    assert report["scored"] == list(NAMES[:-1])
    assert report["unit"] == "area"
    (row,) = report["rows"]
    assert row["seeds"] == [1, 2]
    again = answer(*line, "sweep.dry_run=true")
    assert again.out.count(" done ") >= 2
