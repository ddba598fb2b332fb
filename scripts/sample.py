"""Write the synthetic sample data set, a complete FLAIR #2 tree; or one large raster like it.

python scripts/sample.py ROOT --patch-size 512 --seed 3
python scripts/sample.py FOLDER --scene 8                  # image.tif, truth.tif, series/
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from flair2_exp.config.data import SampleConfig
from flair2_exp.data.sample.scene import write_scene
from flair2_exp.data.sample.tree import ensure_sample
from flair2_exp.errors import FlairError
from flair2_exp.streams import run

_HELP = {
    "seed": "seed of everything random",
    "patch_size": "pixels of a patch, which always covers 102.4 m: 512 gives FLAIR #2's 0.2 m",
    "domains": "number of domains; a quarter validates, a quarter tests",
    "areas_per_domain": "areas in a domain",
    "patches_per_area": "patches in an area",
    "super_patch": "largest satellite crop, in pixels of 10 m, that fits around each patch",
}


def main() -> int:
    """Parse the command line and write the tree; 1 where it cannot be written."""
    parser = argparse.ArgumentParser(
        description="Write the synthetic sample data set, a complete FLAIR #2 tree.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("root", help="the folder to make")
    for option in dataclasses.fields(SampleConfig):
        flag = f"--{option.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=option.default, help=_HELP[option.name])
    parser.add_argument(
        "--scene", type=int, metavar="PATCHES", default=argparse.SUPPRESS,
        help="write one raster of so many patches on a side, with its truth and its series",
    )  # fmt: skip
    options = vars(parser.parse_args())
    root, patches = options.pop("root"), options.pop("scene", None)
    try:
        if patches is None:
            print(ensure_sample(root, SampleConfig(**options)))
        else:
            scene = write_scene(root, patches=patches, options=SampleConfig(**options))
            print(f"{scene.image.parent}\n--flight {scene.flight}")
    except FlairError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)
