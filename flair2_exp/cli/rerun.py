"""`flair2-exp rerun`: the same run again, in a new folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flair2_exp.cli import shown
from flair2_exp.cli.stored import Stored, command_of, stored_config
from flair2_exp.cli.verbs import verb
from flair2_exp.errors import ConfigError, FlairError
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.results.run import RecordedRun
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from flair2_exp.config.experiment import Config


@verb(
    "rerun",
    examples="""
    flair2-exp rerun outputs/unet/TIME --dry-run    # what has changed since
    flair2-exp rerun outputs/unet/TIME
    flair2-exp compare outputs/unet/TIME outputs/unet/NEW_TIME
    """,
)
@click.argument("run", type=shown.PLACE)
@click.option("--dry-run", is_flag=True, help="Say what has changed since, and run nothing.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
    help="Where it runs (default: a new folder beside other runs of this name).",
)  # fmt: skip
@shown.tracking_uri
def command(run: str, dry_run: bool, out: Path | None, tracking_uri: str) -> None:
    """Run again what a run ran: the same config and seed, in a new folder.

    First it says what has changed since: the commit, packages, the content of the data, files of
    weights and code of your own. On a processor, with as many threads and nothing changed, the
    scores are the same.
    """
    earlier = RecordedRun.find(run, tracking_uri)
    folder = earlier.folder
    config = stored_config(folder, earlier.record)
    if out is not None and RunFolder(out).record.exists():
        raise ConfigError(f"{out} holds a run already: name a new folder with --out.")
    print(f"{folder}: {earlier.record.row} seed {earlier.record.seed}, {earlier.state}")
    changes = changes_since(earlier, config)
    if changes:
        rows = [[name, before, now] for name, (before, now) in changes.items()]
        shown.print_table(["changed since", "then", "now"], rows)
    else:
        print("Nothing has changed since: code, packages and data are the same.")
    if dry_run:
        print(f"would run in {out or Path(config.paths.output, config.name, 'TIME')}")
    else:
        Stored(folder, config, out and out.absolute()).run(command_of(folder))


def changes_since(run: RecordedRun, config: Config) -> dict[str, tuple[str, str]]:
    """Return what decides results and is not as it was when a run began: then and now, by name.

    Args:
        run: The earlier one.
        config: Its config.
    """
    from flair2_exp.config.identity import deciding
    from flair2_exp.tracking.provenance import collect
    from flair2_exp.values import differences, render

    before, now = run.record.tags, {str(n): v for n, v in collect().tags().items()}
    changes = {
        name: (before.get(tag, "?"), now.get(tag, "?"))
        for name, tag in (("commit", Tag.COMMIT), ("uncommitted changes", Tag.DIRTY))
        if before.get(tag) != now.get(tag)
    }
    then, today = (_packages(tags.get(Tag.PACKAGES, "")) for tags in (before, now))
    changes |= {n: (then.get(n, "–"), today.get(n, "–")) for n in {**then, **today}
                if then.get(n) != today.get(n)}  # fmt: skip
    fingerprint, problem = _fingerprint(config)
    if problem:
        changes["data"] = (run.record.fingerprint[:12], problem)
    if run.record.deciding:
        decided = deciding(config, fingerprint or run.record.fingerprint)
        changes |= {
            "data" if name == "fingerprint" else name: (render(one)[:24], render(other)[:24])
            for name, (one, other) in differences(run.record.deciding, decided).items()
        }
    return changes


def _packages(text: str) -> Mapping[str, str]:
    pairs = (each.partition("==") for each in text.split("; ") if each)
    return {name: version for name, _, version in pairs}


def _fingerprint(config: Config) -> tuple[str, str]:
    """Return the fingerprint of the data as they are now, or what is in the way."""
    from flair2_exp.lifecycle.assembly import data_fingerprint

    try:
        fingerprint = data_fingerprint(config)
    except FlairError as error:
        return "", str(error).splitlines()[0]
    return fingerprint, "" if fingerprint else "not there: the sample is made anew"
