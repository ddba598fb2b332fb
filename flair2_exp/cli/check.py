"""`flair2-exp check`: every file that a data set names, and all damage at once."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import click

from flair2_exp.cli.progress import progress
from flair2_exp.cli.verbs import option, verb
from flair2_exp.errors import DataError, UsageError

if TYPE_CHECKING:
    from flair2_exp.data.check.findings import Finding

_COLOURS: Final = {"error": "red", "warning": "yellow"}
_WIDTH: Final = 240
"""Off a terminal nothing tells a width: wide enough for one line per finding."""


@verb(
    "check",
    usage="""
    ROOT [OPTIONS]
    OVERRIDES... [OPTIONS]
    """,
    examples="""
    flair2-exp check data/flair2
    flair2-exp check dataset=geotiff dataset.root=data/mine
    flair2-exp check data/flair2 --headers-only --json findings.json
    flair2-exp check data/flair2 --without-series --json -
    """,
)
@click.argument("root", nargs=-1, required=True, type=click.Path())
@option("--json", "target", metavar="FILE", help="Write all findings as JSON; - prints them.")
@option("--headers-only", is_flag=True, help="Leave pixels and values unread: much faster.")
@option("--without-series", is_flag=True, help="The data set has no satellite series.")
@option("--without-metadata", is_flag=True, help="The data set has no aerial metadata.")
@option("--workers", type=click.IntRange(1), metavar="N", help="Processes (default: one per core).")
@option(
    "--super-patch", type=click.IntRange(1), metavar="PIXELS",
    help="On a side of the satellite crop (default: the released 40).",
)  # fmt: skip
@option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N",
    help="Rows of the table.",
)  # fmt: skip
def command(**chosen: Any) -> int:
    """Check a FLAIR #2 tree, or any data set: every file it names, all damage at once.

    ROOT is the folder of the released tree; another data set is named by OVERRIDES, as for a run.
    The exit status is 0 where it is sound (warnings do not count), 1 where it is damaged, and 2
    where it cannot be checked.
    """
    options = SimpleNamespace(**chosen)
    target = options.target
    if target not in (None, "-") and not Path(target).absolute().parent.is_dir():
        raise UsageError(f"--json {target}: there is no such folder; make it first.")
    if "=" in options.root[0]:
        root, check = _source(options)
    elif len(options.root) > 1:
        words = " ".join(options.root[1:])
        raise UsageError(f"{words}: expected one ROOT, or overrides as dataset=geotiff.")
    else:
        root, check = _tree(options)
    return _print(_result(root, check, options), options)


def _tree(options: SimpleNamespace) -> tuple[Path, Callable[..., list[Finding]]]:
    """Return a released tree's folder, and what checks it."""
    from flair2_exp.config.data import DatasetConfig
    from flair2_exp.data.check.tree import SUPER_PATCH, check_tree
    from flair2_exp.data.layout import locate

    root = Path(options.root[0]).expanduser().resolve()
    try:
        folders = locate(DatasetConfig(root=str(root)))
    except DataError as error:  # to a program, 1 is damage
        raise UsageError(str(error)) from error
    return root, partial(
        check_tree,
        folders,
        super_patch=options.super_patch or SUPER_PATCH,
        series=not options.without_series,
        metadata=not options.without_metadata,
    )


def _source(options: SimpleNamespace) -> tuple[Path, Callable[..., list[Finding]]]:
    """Return the folder of the data set that overrides name, and what checks it."""
    from flair2_exp.cli.composed import composed
    from flair2_exp.data.source import open_source

    left_out = {"satellite": options.without_series, "metadata": options.without_metadata}
    config = composed([*options.root, "dataset.on_damaged=skip"])
    groups = config.data_groups
    reads = open_source(groups, frozenset()).has - {n for n, out in left_out.items() if out}
    source = open_source(groups, reads)
    return Path(config.dataset.root or "."), partial(source.check, groups, reads)


def _result(
    root: Path, check: Callable[..., list[Finding]], options: SimpleNamespace
) -> dict[str, Any]:
    """Check; return what `--json` writes, paths relative to the root."""
    patches = 0
    with progress("patches") as bar:

        def report(done: int, total: int) -> None:
            nonlocal patches
            patches = done
            bar(done, total)

        findings = check(
            headers_only=options.headers_only,
            workers=options.workers or os.cpu_count() or 1,
            report=report,
        )
    severities = Counter(finding.severity for finding in findings)
    return {
        "root": str(root),
        "patches": patches,
        "errors": severities["error"],
        "warnings": severities["warning"],
        "kinds": dict(sorted(Counter(finding.kind for finding in findings).items())),
        "findings": [
            dataclasses.asdict(finding) | {"path": str(finding.path).removeprefix(f"{root}/")}
            for finding in findings
        ],
    }


def _print(result: dict[str, Any], options: SimpleNamespace) -> int:
    """Print or write what a check found; return the exit status."""
    status = 1 if result["errors"] else 0
    if options.target == "-":
        print(json.dumps(result, indent=1), flush=True)
        return status
    if options.target is not None:
        try:
            Path(options.target).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        except OSError as error:  # the table still says what hours may have found
            print(f"error: --json {options.target}: {error.strerror}", file=sys.stderr)
            status = 2
    _print_table(result["findings"], options.limit)
    print(
        f"{'damaged' if result['errors'] else 'sound'}: {result['patches']:,} patches, "
        f"{result['errors']:,} errors, {result['warnings']:,} warnings"
        + (" (headers only)" if options.headers_only else ""),
        flush=True,
    )
    return status


def _print_table(findings: Sequence[dict[str, str]], limit: int) -> None:
    """Print the first findings; a path is never cut, however narrow the terminal."""
    if not findings:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    headings = ("", "kind", "file", "patch or area", "what")
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for finding in findings[:limit]:
        severity = f"[{_COLOURS[finding['severity']]}]{finding['severity']}[/]"
        texts = (finding[name] for name in ("kind", "path", "subject", "message"))
        table.add_row(severity, *map(escape, texts))
    console = Console(file=sys.stdout)
    console.width = console.width if console.is_terminal else _WIDTH
    console.print(table)
    if len(findings) > limit:
        print(f"… and {len(findings) - limit:,} more; --json FILE writes all")
