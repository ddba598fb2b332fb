"""`flair2-exp export`: a trained network as a file for other programs, or registered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import click

from flair2_exp.cli.predicting import predictor_of, run_arguments
from flair2_exp.cli.verbs import option, verb
from flair2_exp.errors import ConfigError, UsageError
from flair2_exp.shortage import shortage

if TYPE_CHECKING:
    from flair2_exp.inference.predictor import Predictor
    from flair2_exp.inference.weights import Intervals
    from flair2_exp.lifecycle.folder import RunFolder

SUFFIXES: Final = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


@verb(
    "export",
    usage="RUN [--out FILE] [--register NAME] [OPTIONS]",
    examples="""
    flair2-exp export outputs/demo/TIME --out demo.onnx
    flair2-exp export RUN --out demo.safetensors
    flair2-exp export RUN --register landcover
    """,
)
@run_arguments(several=False)
@option(
    "--format", "form", type=click.Choice(tuple(SUFFIXES)),
    help="What is written (default: by the name of --out).",
)  # fmt: skip
@option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Where to.")
@option(
    "--register",
    metavar="NAME",
    help="Make it a new version of a model in MLflow's registry, in the store of the run.",
)
@option("--overwrite", is_flag=True, help="Replace a file that is there.")
def command(**chosen: Any) -> None:
    """Write the network of a run as a file for other programs, or register it.

    \b
    onnx         for ONNX Runtime, and for QGIS's Deepness plugin where the
                 network reads the image alone; kept if its results are torch's
                 on random patches
    torch        a program of torch.export, which runs without this package;
                 checked likewise
    safetensors  the weights, with a model card beside them; every command
                 takes it as a RUN
    """  # noqa: D301 - Click's sign for a paragraph that is not filled
    options = SimpleNamespace(**chosen)
    if options.form and not options.out:
        file = f"FILE{SUFFIXES[options.form]}"
        raise UsageError(f"--format {options.form} says what is written: add --out {file}.")
    if not options.out and not options.register:
        raise UsageError("nothing to do: give --out FILE, or --register NAME.")
    if options.out:
        options.form = _form(options.out, options.form)
        _require_place(options.out, options.form, options.overwrite)
    predictor = predictor_of(options)
    from flair2_exp.inference import export

    export.single(predictor)
    if options.out:
        try:
            print(_write(predictor, options.form, options.out), flush=True)
        except OSError as error:
            if shortage(error):
                raise
            raise _unwritable(options.out, error.strerror or str(error)) from error
    if options.register:
        from flair2_exp.inference.registering import register

        version = register(predictor, options.register, options.tracking_uri)
        print(f"registered: models:/{options.register}/{version}")


def _write(predictor: Predictor, form: str, out: Path) -> str:
    """Write a file; return a line on it."""
    from flair2_exp.inference import export, weights

    if form == "safetensors":
        member = predictor.members[0]
        card = weights.model_card(member, out.name, _intervals(member.stored.folder))
        weights.write_weights(member, out, card)
        return f"{out}: {_megabytes(out)}; {weights.card_path(out)} is its card"
    write = export.export_onnx if form == "onnx" else export.export_program
    agreement = write(predictor, out)
    return (
        f"{out}: {_megabytes(out)}; differs from torch by at most {agreement.largest:.1g}, in the "
        f"class of {agreement.differing} of {agreement.pixels:,} pixels"
    )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _intervals(folder: RunFolder | None) -> Intervals | None:
    """Return the intervals of a run's scores, from the counts that its test left."""
    if folder is None or not folder.confusion.is_file():
        return None
    import numpy as np

    from flair2_exp.inference.weights import Intervals
    from flair2_exp.report.counts import read_counts
    from flair2_exp.report.statistics import LEVEL, row_counts
    from flair2_exp.report.units import Units

    counts = read_counts(folder.confusion)
    scored = counts.nomenclature.scored
    units = Units.of([row_counts("run", [counts.confusion], scored)], counts.areas, "auto")
    estimate, _ = units.estimate(np.eye(1))
    names = ("mIoU", *counts.classes[:scored])
    triples = zip(names, estimate.low[0].tolist(), estimate.high[0].tolist(), strict=True)
    # An IoU is in 0..1; a symmetric interval over few domains need not be.
    ends = {n: (max(0.0, low), min(1.0, high)) for n, low, high in triples if np.isfinite(low)}
    if not ends:  # of a single area
        return None
    drawn = units.drawn[0].areas
    return Intervals(
        ends,
        f"{LEVEL:.0%}, over the {drawn} {units.unit}s of the test set; of one seed, whose luck "
        "they do not hold",
    )


def _form(out: Path, form: str | None) -> str:
    """Return the format of a file, by its name.

    Raises:
        UsageError: Its name does not go with the format, or with any.
    """
    forms = {suffix: name for name, suffix in SUFFIXES.items() if form in (None, name)}
    if out.suffix not in forms:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(forms)}.")
    return forms[out.suffix]


def _require_place(out: Path, form: str, overwrite: bool) -> None:
    """Refuse a file that could not be written, or is there already.

    Raises:
        UsageError: It is there.
        ConfigError: Its folder is not there.
    """
    if not out.parent.is_dir():
        raise _unwritable(out, f"there is no folder {out.parent}")
    files = [out, out.with_suffix(".md")] if form == "safetensors" else [out]
    for file in files:
        if file.is_dir():
            raise _unwritable(file, "this is a folder")
        if file.exists() and not overwrite:
            raise UsageError(f"{file} is there already: give another name, or --overwrite.")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise _unwritable(out, error.strerror or str(error)) from error


def _unwritable(out: Path, reason: str) -> ConfigError:
    return ConfigError(f"{out} cannot be written: {reason}.\nName a file in another folder: --out.")
