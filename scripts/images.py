"""Make the images of the README and the site anew: `make images`.

python scripts/images.py --work /tmp/images              # a quarter of an hour on 2 cores
python scripts/images.py --work /tmp/images --quick --out /tmp/drawn     # to try it: minutes

All are of one demo run, one sweep on the synthetic sample and one scene; a second call takes over
what the first has trained. With `--quick` the networks are hardly trained.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SWEEP = (
    "--multirun", "model=unet,utt", "sweep.name=satellite", "preset=tiny", "data.batch_size=4",
    "dataset.sample.domains=24", "hydra/launcher=slots", "hydra.launcher.slots=2",
    "trainer.threads=1",
)  # fmt: skip
FULL = (
    "seed=1,2,3", "trainer.max_epochs=30", "dataset.sample.areas_per_domain=2",
    "dataset.sample.patches_per_area=3",
)  # fmt: skip
QUICK = (
    "seed=1,2", "trainer.max_epochs=2", "dataset.sample.areas_per_domain=1",
    "dataset.sample.patches_per_area=2",
)  # fmt: skip
"""The tutorial's sweep (`docs/tutorial.md`), and one to see that the images can be made."""


def main() -> None:
    """Train, test, predict and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and sample")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="of the images")
    parser.add_argument("--quick", action="store_true", help="hardly train the networks")
    options = parser.parse_args()
    out, work = options.out.absolute(), options.work.absolute()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    os.chdir(work)

    flair("preset=tiny", "name=demo", "hydra.run.dir=demo",
          *(["trainer.max_epochs=2"] if options.quick else []))  # fmt: skip
    shutil.copy(work / "demo/panel.png", out / "demo_panel.png")

    flair(*SWEEP, *(QUICK if options.quick else FULL))
    shutil.copy(work / "multirun/satellite/report/forest.png", out / "leaderboard_sample.png")

    for run in sorted(work.glob("multirun/satellite/*_unet_seed=*")):
        flair("predict", str(run), "--split", "test", "--tta", "d4")
    for row in ("unet", "utt"):
        flair("predict", "--ensemble", f"satellite/{row}", "--split", "test")
    flair("report", "multirun/satellite", "outputs", "--format", "png", "--out", "rows")
    shutil.copy(work / "rows/forest.png", out / "map_leaderboard.png")

    if not (work / "scene").is_dir():
        flair("sample", "scene", "--scene", "3" if options.quick else "12")
    command("scripts/benchmark.py", "inference", "--seams", "multirun/satellite/0_unet_seed=1",
            "scene", "--figure", str(out / "map_seams.png"))  # fmt: skip


def flair(*words: str) -> None:
    """Run a command of the package."""
    command("-m", "flair2_exp", *words)


def command(*words: str) -> None:
    """Run Python, the first word a script of the checkout or an option; end where it fails."""
    print("\n$ python", *words, flush=True)
    first = words[0] if words[0].startswith("-") else str(ROOT / words[0])
    subprocess.run([sys.executable, first, *words[1:]], check=True)


if __name__ == "__main__":
    main()
