"""`flair2-exp sample`: the synthetic sample, a complete FLAIR #2 tree; or one large raster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import click

from flair2_exp.cli.verbs import option, verb
from flair2_exp.config.data import SampleConfig

_HELP: Final = {
    "seed": "Seed of everything random.",
    "patch_size": "Pixels of a patch, which always covers 102.4 m: 512 gives FLAIR #2's 0.2 m.",
    "domains": "Number of domains; a quarter validates, a quarter tests.",
    "areas_per_domain": "Areas in a domain.",
    "patches_per_area": "Patches in an area.",
    "super_patch": "Largest satellite crop, in pixels of 10 m, that fits around each patch.",
}


def _options_of_the_sample(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb an option for each of `dataset.sample.*`."""
    for each in reversed(dataclasses.fields(SampleConfig)):
        flag = f"--{each.name.replace('_', '-')}"
        number = option(
            flag, type=int, default=each.default, show_default=True, metavar="N",
            help=_HELP[each.name],
        )  # fmt: skip
        function = number(function)
    return function


@verb(
    "sample",
    examples="""
    flair2-exp sample data/sample --patch-size 512 --seed 3
    flair2-exp sample data/scene --scene 8        # image.tif, truth.tif, series/
    """,
)
@click.argument("root", type=click.Path())
@_options_of_the_sample
@option(
    "--scene", type=int, metavar="PATCHES",
    help="Write one raster of so many patches on a side, with its truth and its series.",
)  # fmt: skip
def command(root: str, scene: int | None, **numbers: int) -> None:
    """Write the synthetic sample to ROOT: a complete FLAIR #2 tree, made without any download."""
    chosen = SampleConfig(**numbers)
    if scene is None:
        from flair2_exp.data.sample.tree import ensure_sample

        print(ensure_sample(root, chosen))
        return
    from flair2_exp.data.sample.scene import write_scene

    made = write_scene(root, patches=scene, options=chosen)
    print(f"{made.image.parent}\n--flight {made.flight}")
