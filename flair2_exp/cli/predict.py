"""`python -m flair2_exp predict`: maps, rasters of a split, and scores, from trained networks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flair2_exp.cli.predicting import (
    add_run_arguments,
    command_line,
    predictor_of,
    results_root,
)
from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import PROGRAM, Parser
from flair2_exp.errors import UsageError

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


def main(arguments: Sequence[str]) -> int:
    """Predict what the command names: an image, or a part of the run's own data.

    Returns:
        0.

    Raises:
        FlairError: Something is wrong with the flags, the networks, the images or the disk.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    _require_sense(options, parser)
    command = command_line("predict", arguments)
    predictor = predictor_of(options)
    if options.image:
        _map(predictor, options, command)
        return 0
    if options.out is not None:
        _rasters(predictor, options, command)
    if options.out is None or options.score:
        _score(predictor, options, arguments)
    return 0


def _require_sense(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse flags that do not go together.

    Raises:
        UsageError: They do not.
    """
    if bool(options.image) == bool(options.split):
        raise UsageError("predict what: name --image FILE, or --split test.")
    idle = _OF_SPLITS if options.image else _OF_IMAGES
    of, other = ("--split", "--image") if options.image else ("--image", "--split")
    for name in idle:
        if getattr(options, name) != parser.get_default(name):
            raise UsageError(f"--{name.replace('_', '-')} goes with {of}, not with {other}.")
    for name, least in {"batch_size": 1, "workers": 0, "devices": 1}.items():
        if getattr(options, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {getattr(options, name)}: expected {least} or more.")
    if options.image and options.out is None:
        raise UsageError("--image needs --out FILE.tif, the map to write.")


def _map(predictor: Predictor, options: argparse.Namespace, command: str) -> None:
    from flair2_exp.inference.legend import write_legend
    from flair2_exp.inference.mapping import MapOptions, map_raster
    from flair2_exp.inference.surroundings import Flight

    chosen = MapOptions(
        overlap=options.overlap,
        join=options.join,
        bands=tuple(options.bands) if options.bands else None,
        resample=options.resample,
        area=options.area,
        bounds=tuple(options.bounds) if options.bounds else None,
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
            predictor, options.image, options.out, chosen, command=command, progress=report
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


def _rasters(predictor: Predictor, options: argparse.Namespace, command: str) -> None:
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


def _score(predictor: Predictor, options: argparse.Namespace, words: Sequence[str]) -> None:
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


def _classes(predictor: Predictor, options: argparse.Namespace) -> tuple[str, ...]:
    """Return the classes whose probabilities are wanted; with `--probabilities` alone, all."""
    if options.probabilities is None:
        return ()
    return tuple(options.probabilities) or predictor.nomenclature.names


def _parser() -> Parser:
    made = Parser(
        prog=f"{PROGRAM} predict",
        usage=f"{PROGRAM} predict RUN --image FILE... --out MAP.tif [options]\n"
        f"       {PROGRAM} predict RUN --split PART [--out FOLDER] [options]",
        description="Predict an image, or a part of a run's own data, with trained networks.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""examples:
  {PROGRAM} predict RUN --image ortho.vrt --out landcover.tif --confidence
  {PROGRAM} predict RUN --image ortho.tif --series S2_FOLDER --out landcover.tif
  {PROGRAM} predict RUN --split test --out maps/
  {PROGRAM} predict --ensemble leaderboard/utt_cloudfree_monthly_aug --split test --tta d4
The last one, without --out, is scored: a run in MLflow, and a row in the leaderboard.""",
    )
    add_run_arguments(made)
    what = made.add_argument_group("what")
    what.add_argument(
        "--image", nargs="+", type=Path, metavar="FILE", help="a raster or VRT, or several files"
    )
    what.add_argument(
        "--split", metavar="PART", help="test, validation or train, of the run's data"
    )
    image = made.add_argument_group("an image")
    image.add_argument(
        "--series", type=Path, metavar="FOLDER", help="Sentinel-2 acquisitions, for a network that "
        "reads them",
    )  # fmt: skip
    image.add_argument(
        "--flight",
        nargs=4,
        metavar=("DATE", "TIME", "CAMERA", "ALTITUDE"),
        help="for a network that reads metadata, as 2021-07-09 10h33 UCE-M3 120 (metres)",
    )
    image.add_argument("--bands", nargs="+", metavar="NAME", help="of the files, in their order")
    image.add_argument(
        "--resample", action="store_true", help="to the run's resolution, where it differs"
    )
    image.add_argument("--area", type=Path, metavar="FILE", help="polygons to map; nodata outside")
    image.add_argument("--bounds", nargs=4, type=float, metavar=("W", "S", "E", "N"))
    image.add_argument("--nodata", type=float, metavar="VALUE", help="of the image")
    image.add_argument("--overlap", type=int, metavar="PIXELS", help="of neighbouring tiles")
    image.add_argument("--join", choices=("blend", "crop"), default="blend")
    image.add_argument("--cog", action="store_true", help="write cloud-optimised GeoTIFFs")
    image.add_argument(
        "--polygons", type=float, metavar="M2", help="also a GeoPackage, of areas from M2 m² up"
    )
    result = made.add_argument_group("result")
    result.add_argument("--out", type=Path, metavar="PATH", help="the map, or a folder for a split")
    result.add_argument(
        "--probabilities", nargs="*", metavar="CLASS", help="of these classes, or of all"
    )
    result.add_argument("--confidence", action="store_true", help="of the predicted class")
    result.add_argument("--no-mosaics", action="store_true", help="patches alone, not areas")
    result.add_argument(
        "--score", action="store_true", help="keep the scores as a run (default without --out)"
    )
    result.add_argument("--name", metavar="ROW", help="of the scored run")
    result.add_argument("--overwrite", action="store_true")
    machine = made.add_argument_group("machine")
    machine.add_argument("--batch-size", type=int, default=4, metavar="N")
    machine.add_argument("--workers", type=int, default=2, metavar="N", help="that read a split")
    machine.add_argument("--devices", type=int, default=1, metavar="N", help="that share an image")
    return made
