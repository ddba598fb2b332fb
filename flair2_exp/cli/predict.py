"""`flair2-exp predict`: maps, rasters of a split, and scores, from trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from flair2_exp.cli.predicting import predictor_of, run_arguments
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import PROGRAM, WORDS, option, verb
from flair2_exp.errors import UsageError
from flair2_exp.results.finding import results_root

if TYPE_CHECKING:
    from flair2_exp.inference.mapping import MapSummary
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.inference.split import SplitSummary

_OF_IMAGES: Final = (
    "series", "flight", "bands", "resample", "area", "bounds", "nodata", "overlap", "join", "cog",
    "polygons",
)  # fmt: skip
"""Flags that say nothing of a split."""
_OF_SPLITS: Final = ("no_mosaics", "score", "name", "workers")
"""Flags that say nothing of an image."""

_what = partial(option, section="What, and where to")
_image = partial(option, section="An image")
_machine = partial(option, section="Network")
_file = click.Path(path_type=Path)


@verb(
    "predict",
    usage="""
    RUN --image FILE... --out MAP.tif [OPTIONS]
    RUN --split PART [--out FOLDER] [OPTIONS]
    """,
    examples="""
    flair2-exp predict RUN --image ortho.vrt --out landcover.tif --confidence
    flair2-exp predict RUN --image ortho.tif --series S2_FOLDER --out map.tif
    flair2-exp predict RUN --split test --out maps/
    flair2-exp predict --ensemble leaderboard/utt --split test --tta d4
    """,
)
@run_arguments()
@_machine("--batch-size", type=click.IntRange(1), default=4, metavar="N", help="Tiles at once.")
@_machine("--workers", type=click.IntRange(0), default=2, metavar="N", help="That read a split.")
@_machine("--devices", type=click.IntRange(1), default=1, metavar="N", help="That share an image.")
@_what("--image", several=True, type=_file, metavar="FILE...", help="A raster or VRT, or several.")
@_what("--split", metavar="PART", help="test, validation or train, of the run's data.")
@_what("--out", type=_file, metavar="PATH", help="The map, or a folder for a split.")
@_what(
    "--probabilities",
    several=True,
    is_flag=False,
    flag_value="",
    metavar="[CLASS...]",
    help="Of these classes, or of all.",
)
@_what("--confidence", is_flag=True, help="Of the predicted class.")
@_what("--no-mosaics", is_flag=True, help="Patches alone, not areas.")
@_what("--score", is_flag=True, help="Keep the scores as a run (default without --out).")
@_what("--name", metavar="ROW", help="Of the scored run.")
@_what("--overwrite", is_flag=True, help="Replace what is there.")
@_image("--series", type=_file, metavar="FOLDER", help="Sentinel-2, for a network that reads it.")
@_image(
    "--flight",
    nargs=4,
    metavar="DAY TIME CAMERA M",
    help="As 2021-07-09 10h33 UCE-M3 120 (metres).",
)
@_image("--bands", several=True, metavar="NAME...", help="Of the files, in their order.")
@_image("--resample", is_flag=True, help="To the run's resolution, where it differs.")
@_image("--area", type=_file, metavar="FILE", help="Polygons to map; nodata outside.")
@_image("--bounds", nargs=4, type=float, metavar="W S E N", help="What to map, in map units.")
@_image("--nodata", type=float, metavar="VALUE", help="Of the image.")
@_image("--overlap", type=int, metavar="PIXELS", help="Of neighbouring tiles.")
@_image("--join", type=click.Choice(("blend", "crop")), default="blend", help="How tiles meet.")
@_image("--cog", is_flag=True, help="Write cloud-optimised GeoTIFFs.")
@_image("--polygons", type=float, metavar="M2", help="Also a GeoPackage, of areas from M2 m² up.")
@click.pass_context
def command(ctx: click.Context, /, **chosen: Any) -> None:
    """Predict an image, or a part of a run's own data, with trained networks.

    RUN is a run's folder, its checkpoint, or the id of its MLflow run. A split without --out is
    scored: a run in MLflow, and a row in the leaderboard.
    """
    from flair2_exp.tracking.provenance import command_line

    options = SimpleNamespace(**chosen)
    _require_sense(options, ctx)
    words = ctx.meta[WORDS]
    line = command_line([PROGRAM, "predict", *words])
    predictor = predictor_of(options)
    if options.image:
        _map(predictor, options, line)
        return
    if options.out is not None:
        _rasters(predictor, options, line)
    if options.out is None or options.score:
        _score(predictor, options, words)


def _require_sense(options: SimpleNamespace, ctx: click.Context) -> None:
    """Refuse flags that do not go together.

    Raises:
        UsageError: They do not.
    """
    if bool(options.image) == bool(options.split):
        raise UsageError("predict what: name --image FILE, or --split test.")
    idle = _OF_SPLITS if options.image else _OF_IMAGES
    of, other = ("--split", "--image") if options.image else ("--image", "--split")
    for name in idle:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} goes with {of}, not with {other}.")
    if options.image and options.out is None:
        raise UsageError("--image needs --out FILE.tif, the map to write.")


def _map(predictor: Predictor, options: SimpleNamespace, command: str) -> None:
    from flair2_exp.inference.legend import write_legend
    from flair2_exp.inference.mapping import MapOptions, map_raster
    from flair2_exp.inference.surroundings import Flight

    map_options = MapOptions(
        overlap=options.overlap,
        join=options.join,
        bands=options.bands or None,
        resample=options.resample,
        area=options.area,
        bounds=options.bounds,
        nodata=options.nodata,
        series=options.series,
        flight=Flight.parse(" ".join(options.flight)) if options.flight else None,
        probabilities=_classes(predictor, options),
        confidence=options.confidence,
        cog=options.cog,
        batch_size=options.batch_size,
        devices=options.devices,
        overwrite=options.overwrite,
    )
    with progress("tiles") as report:
        summary = map_raster(
            predictor, options.image, options.out, map_options, command=command, progress=report
        )
    write_legend(options.out, predictor.nomenclature)
    print(_map_text(summary, predictor))
    if options.polygons is not None:
        from flair2_exp.inference.polygons import write_polygons

        made = write_polygons(
            options.out, options.out.with_suffix(".gpkg"), predictor.nomenclature,
            smallest=options.polygons, overwrite=options.overwrite,
        )  # fmt: skip
        print(f"{made.path}: {made.polygons:,} polygons of {options.polygons:g} m² and more")


def _map_text(summary: MapSummary, predictor: Predictor) -> str:
    """Return what a map holds, in a few lines."""
    mapped = sum(summary.pixels[name] for name in predictor.nomenclature.names)
    whole = summary.width * summary.height
    files = ", ".join(str(path) for path in summary.files.values())
    resumed = f", {summary.resumed} parts of an earlier command" if summary.resumed else ""
    lines = [
        f"{files}: {summary.width:,} x {summary.height:,} pixels, {mapped / whole:.1%} of them "
        f"mapped; {summary.predicted:,} tiles predicted, {summary.skipped:,} without data{resumed}"
    ]
    shares = sorted(summary.pixels.items(), key=lambda item: -item[1])
    lines += [
        f"  {name:<24}{count / max(1, mapped):7.1%}"
        for name, count in shares
        if name != "nodata" and count
    ]
    return "\n".join(lines)


def _rasters(predictor: Predictor, options: SimpleNamespace, command: str) -> None:
    from flair2_exp.inference.split import predict_split

    with progress(f"{options.split} patches") as report:
        summary = predict_split(
            predictor, options.split, options.out,
            probabilities=_classes(predictor, options), confidence=options.confidence,
            mosaics=not options.no_mosaics, workers=options.workers,
            batch_size=options.batch_size, overwrite=options.overwrite,
            command=command, progress=report,
        )  # fmt: skip
    print(_split_text(summary))


def _split_text(summary: SplitSummary) -> str:
    """Return what was made of a split, in a few lines."""
    kept = summary.patches - summary.predicted
    earlier = f", {kept:,} of them by an earlier command" if kept else ""
    lines = [
        f"{summary.folder}: {summary.patches:,} patches{earlier}, {summary.mosaics:,} mosaics of "
        f"areas; reading and network took {summary.seconds:.1f} s"
    ]
    if summary.without_mosaic:
        area, reason = next(iter(summary.without_mosaic.items()))
        lines.append(f"{len(summary.without_mosaic):,} areas have no mosaic, as {area}: {reason}")
    return "\n".join(lines)


def _score(predictor: Predictor, options: SimpleNamespace, words: Sequence[str]) -> None:
    """Score the predictor: on the test part it leaves a run, on others it prints the scores."""
    from flair2_exp.inference.evaluation import evaluate, require_scorable
    from flair2_exp.inference.scoring import score

    with progress(f"{options.split} patches") as report:
        if options.split == "test":
            folder = score(
                predictor, results_root(), name=options.name or "",
                tracking_uri=options.tracking_uri, batch_size=options.batch_size,
                workers=options.workers, words=words, progress=report,
            )  # fmt: skip
            print(f"scored: {folder}")
            return
        require_scorable(predictor, options.split)
        done = evaluate(
            predictor, options.split, batch_size=options.batch_size, workers=options.workers,
            progress=report,
        )  # fmt: skip
    for name, value in done.metrics.items():
        print(f"{name:<40}{value:.4f}")


def _classes(predictor: Predictor, options: SimpleNamespace) -> tuple[str, ...]:
    """Return the classes whose probabilities are wanted; with `--probabilities` alone, all."""
    named: tuple[str, ...] = options.probabilities
    return predictor.nomenclature.names if "" in named else named
