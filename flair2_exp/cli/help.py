"""What `flair2-exp --help` prints: the groups, their options and how to use them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

from flair2_exp.cli.verbs import VERBS
from flair2_exp.config.groups import options_of

USAGE: Final = """\
flair2_exp: experiments on FLAIR #2 land cover, from config groups to scored MLflow runs.

  flair2-exp model=utt s2_preproc=monthly_cloudfree      one experiment
  flair2-exp preset=tiny                                 a small one, for a processor
  flair2-exp --multirun model=unet,utt seed=1,2,3        several
  flair2-exp resume=FOLDER                               an interrupted one; it may get more
                                                         epochs: trainer.max_epochs=N
  flair2-exp model=utae --cfg job                        print the config, run nothing
  flair2-exp --hydra-help                                Hydra's own flags

Choose an option of a group with GROUP=OPTION, set a value with GROUP.KEY=VALUE. Each option's file
in {folder} begins with the command that uses it.

"""


def help_text(folder: Path) -> str:
    """Return the help, with every group of a config folder and its options.

    Args:
        folder: `conf/`.
    """
    groups = {
        path.name: options_of(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name != "hydra"
    }
    width = max(map(len, groups)) + 4
    lines = [
        textwrap.fill(
            ", ".join(choices),
            100,
            initial_indent=f"  {name:<{width - 2}}",
            subsequent_indent=" " * width,
            break_on_hyphens=False,
            break_long_words=False,
        )
        for name, choices in groups.items()
    ]
    verbs = [f"  {name:<{width - 2}}{verb.help}" for name, verb in VERBS.items()]
    parts = ("Verbs (`flair2-exp VERB --help`)", *verbs, "", "Groups", *lines)
    return USAGE.format(folder=folder) + "\n".join(parts)
