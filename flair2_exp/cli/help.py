"""What `flair2-exp --help` prints: how to use it, the verbs and the groups, on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Final

from flair2_exp.cli.verbs import VERBS
from flair2_exp.config.groups import options_of

WIDTH: Final = 80

USAGE: Final = """\
flair2_exp: experiments on FLAIR #2 land cover, from config to scored MLflow run

  flair2-exp preset=tiny                             a small one, on a processor
  flair2-exp model=utt s2_preproc=monthly_cloudfree  one experiment
  flair2-exp --multirun model=unet,utt seed=1,2,3    several
  flair2-exp resume=FOLDER                           one that was interrupted
  flair2-exp model=utae --cfg job                    print the config only
  flair2-exp --help model loss                       the choices of these groups

GROUP=CHOICE takes a file of a group, GROUP.OPTION=VALUE sets one value.
"""


def help_text(folder: Path, words: Collection[str] = ()) -> str:
    """Return the help.

    Args:
        folder: `conf/`.
        words: Of the command line. Where some are groups, their choices are listed instead.
    """
    groups = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name != "hydra"
    }
    asked = [name for name in groups if name in words]
    if asked:
        choices = [_line(name, ", ".join(options_of(groups[name]))) for name in asked]
        return "\n".join([*choices, f"Each file in {folder} begins with the command that uses it."])
    verbs = [_line(name, verb.help) for name, verb in VERBS.items()]
    names = textwrap.fill(", ".join(groups), WIDTH, initial_indent="  ", subsequent_indent="  ")
    parts = ("Verbs (`flair2-exp VERB --help`)", *verbs, "", "Groups (`--help GROUP`)", names)
    return "\n".join([USAGE, *parts, "", "`flair2-exp --hydra-help` lists Hydra's own flags."])


def _line(name: str, text: str) -> str:
    """Return a name and what is said of it, broken at commas and blanks."""
    return textwrap.fill(
        text, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
