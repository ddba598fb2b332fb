"""A network of a user's own, from a file and a class, beside the built-in ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flair2_exp.models.registry import NetworkSpec, SegmentationModel
from flair2_exp.run.folder import RunFolder
from flair2_exp.run.record import RunRecord
from flair2_exp.tracking.tags import Tag
from tests.commands import answer
from tests.configs import SMALL_SAMPLE


class Pixelwise(SegmentationModel):
    """One linear map per pixel of the aerial patch, and the mean of the series."""

    main_head = "aerial"

    def __init__(self, spec: NetworkSpec, *, pretrained: bool = True, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(spec.bands + 10, width, 1)
        self.last = nn.Conv2d(width, spec.classes, 1)

    def forward(
        self, image: Tensor, series: Tensor, days: Tensor, padding: Tensor
    ) -> dict[str, Tensor]:
        mean = series.mean(dim=(1, 3, 4))[:, :, None, None].expand(-1, -1, *image.shape[2:])
        return {"aerial": self.last(torch.relu(self.first(torch.cat([image, mean], dim=1))))}


FILE = f"""\
# A network of our own.
name: pixelwise
_target_: {__name__}.Pixelwise
reads: [aerial, satellite]
options: {{width: 8}}
"""


@pytest.mark.slow
def test_a_network_of_ones_own_is_planned_trained_and_reported_beside_unet(tmp_path: Path) -> None:
    file = tmp_path / "own" / "model" / "pixelwise.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(FILE)
    line = (
        "--config-dir", str(tmp_path / "own"), "--multirun", "model=unet,pixelwise", "seed=1",
        "preset=debug", "trainer=cpu", "tracking=off", "sweep.name=own", *SMALL_SAMPLE,
        f"paths.root={tmp_path}", "hydra.sweep.subdir='${name}/seed=${seed}'",
    )  # fmt: skip
    planned = answer(*line, "sweep.dry_run=true")
    assert "2 jobs, 0 done" in planned.out, planned.err
    done = answer(*line)
    assert done.status == 0, done.err
    sweep = tmp_path / "multirun" / "own"
    report = json.loads((sweep / "report" / "leaderboard.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["unet", "pixelwise"]
    assert all(0 <= row["miou_value"] <= 1 for row in report["rows"])
    record = RunRecord.read(RunFolder(sweep / "pixelwise" / "seed=1"))
    assert record is not None
    assert record.tags[Tag.READS] == "aerial,satellite"
    assert record.deciding["model.options.width"] == 8
    assert answer(*line, "sweep.dry_run=true").out.count(" done ") == 2
