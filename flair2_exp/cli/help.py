"""What `python -m flair2_exp --help` prints: the groups, their options and how to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

USAGE: Final = """\
flair2_exp: experiments on FLAIR #2 land cover, from config groups to scored MLflow runs.

  python -m flair2_exp model=utt s2_preproc=monthly_cloudfree      one experiment
  python -m flair2_exp preset=tiny                                 a small one, for a processor
  python -m flair2_exp --multirun model=unet,utt seed=1,2,3        several
  python -m flair2_exp model=utae --cfg job                        print the config, run nothing
  python -m flair2_exp --hydra-help                                Hydra's own flags

Choose an option of a group with GROUP=OPTION, set a value with GROUP.KEY=VALUE. Each option's file
in {folder} begins with the command that uses it.

"""


def help_text(folder: Path) -> str:
    """The help, with every group of a config folder and its options.

    Args:
        folder: `conf/`.
    """
    groups = {
        path.name: options_of(path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name != "hydra"
    }
    width = max(map(len, groups)) + 2
    lines = [f"  {name:<{width}}{_wrapped(options, width + 2)}" for name, options in groups.items()]
    return USAGE.format(folder=folder) + "Groups\n" + "\n".join(lines)


def completions(folder: Path, line: str) -> list[str]:
    """What completes a command line that ends in `experiment=`: Hydra offers no option of a folder.

    Args:
        folder: `conf/`.
        line: The command line up to the cursor.

    Returns:
        Words for its last one; none where that is left to Hydra.
    """
    group, equals, begun = line.rpartition(" ")[2].partition("=")
    if group != "experiment" or not equals:
        return []
    options = options_of(folder / group)
    return [f"{group}={option}" for option in options if option.startswith(begun)]


def options_of(group: Path) -> list[str]:
    """The options of a group, those of its subfolders as `leaderboard/utt`; `group`: its folder."""
    return sorted(str(each.relative_to(group).with_suffix("")) for each in group.rglob("*.yaml"))


def _wrapped(words: list[str], indent: int) -> str:
    """Words with commas between, in lines of at most 100 columns."""
    lines, line = [], ""
    for word in words:
        if line and indent + len(line) + len(word) + 2 > 100:
            lines.append(line)
            line = ""
        line += f"{word}, "
    return f"\n{' ' * indent}".join([*lines, line]).rstrip(", ")
