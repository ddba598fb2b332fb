"""What a person sees on MLflow's pages, in a browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import requests

from flair2_exp.lifecycle import experiment
from flair2_exp.lifecycle.folder import RunFolder
from flair2_exp.lifecycle.record import RunRecord
from flair2_exp.tracking.store import local_uri, open_store
from flair2_exp.tracking.tags import Tag
from flair2_exp.tracking.view import address, run_page, tagged_runs_page
from tests.configs import SMALL_SAMPLE, compose_config
from tests.lifecycle.helpers import record_of
from tests.tracking.test_server import free_port

sync_api = pytest.importorskip("playwright.sync_api", reason="of the extra `dev`")
CHROMIUM = shutil.which("chromium") or ""
PATIENCE = 60_000
"""Milliseconds for a page to show something, on a machine that does much else."""

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]


@dataclass(frozen=True)
class Site:
    """MLflow's pages of a store with two runs."""

    address: str
    view: str
    runs: list[RunRecord]
    experiment_id: str = "1"

    def page_of(self, run: RunRecord, part: str) -> str:
        path, _, query = run_page(self.experiment_id, run.run_id).partition("?")
        return f"{self.address}/{path}/{part}?{query}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("pages")
    records = []
    for seed, model in ((1, "unet"), (2, "fpn")):
        overrides = (f"paths.root={root}", "preset=debug", "trainer=cpu", *SMALL_SAMPLE)
        chosen = ("data=aerial_only", f"model={model}", f"seed={seed}", "trainer.max_epochs=2")
        folder = RunFolder(root / model)
        experiment.run(compose_config(*overrides, *chosen), folder.path)
        records.append(record_of(folder.path))
    uri, port = local_uri(root / "mlruns"), free_port()
    command = (sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--workers", "1")
    with (root / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--backend-store-uri", uri],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server)
            view = address(f"127.0.0.1:{port}", open_store(uri))
            yield Site(f"http://127.0.0.1:{port}", view, records)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 150
    while True:
        try:
            requests.get(url, timeout=1).raise_for_status()
            return
        except requests.RequestException:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.25)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # A container's root has no sandbox; the pages are this test's own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 2200, "height": 1200})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


def test_the_prepared_view_shows_runs_by_score_with_their_data(site: Site, page: Any) -> None:
    page.goto(site.view)
    best, other = sorted(site.runs, key=lambda run: -run.scores["test/miou"])
    for run in (best, other):
        name = f"{run.row} seed={run.seed} sample {run.identity[:6]}"
        page.get_by_role("link", name=name).first.wait_for()
    data = page.get_by_text(f"sample ({best.fingerprint[:12]})")
    data.first.wait_for()
    heads = page.evaluate(
        "[...document.querySelectorAll('.ag-header-cell')].sort((a, b) => "
        "a.getBoundingClientRect().x - b.getBoundingClientRect().x).map(e => e.innerText.trim())"
    )
    shown = [head for head in heads if head]
    assert shown.index("test/miou") < shown.index("val/miou") < shown.index("flair2.row")
    assert {"flair2.seed", "flair2.model", "Dataset"} <= set(shown)
    scores = page.locator("[role=gridcell][col-id='metrics.`test/miou`']").all_inner_texts()
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2


def test_the_runs_of_a_tag_are_shown_alone_as_a_sweeps_page_links_them(
    site: Site, page: Any
) -> None:
    wanted, other = site.runs
    page.goto(f"{site.address}/{tagged_runs_page(site.experiment_id, Tag.MODEL, 'unet')}")
    link = page.get_by_role("link", name=f"{wanted.row} seed={wanted.seed} sample")
    link.first.wait_for()
    assert page.get_by_role("link", name=f"{other.row} seed={other.seed} sample").count() == 0


def test_a_compare_page_names_runs_and_options_that_differ(site: Site, page: Any) -> None:
    chosen = {"runs": [run.run_id for run in site.runs], "experiments": [site.experiment_id]}
    query = urlencode({name: json.dumps(each) for name, each in chosen.items()}, quote_via=quote)
    page.goto(f"{site.address}/#/compare-runs?{query}")
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    page.get_by_text("Parameters", exact=True).first.wait_for()
    text = page.inner_text("body")
    for run in site.runs:
        assert f"{run.row} seed={run.seed} sample" in text
    assert "model.name\tunet\tfpn" in text
    assert "seed\t1\t2" in text
    assert "paths.root" not in text


def test_an_artifact_is_shown(site: Site, page: Any) -> None:
    page.goto(site.page_of(site.runs[0], "artifacts/confusion.png"))
    drawn = "[...document.images].some(each => each.naturalWidth > 1000)"
    page.wait_for_function(drawn)


def test_a_test_score_is_a_bar_and_a_loss_a_line(site: Site, page: Any) -> None:
    page.goto(site.page_of(site.runs[0], "model-metrics"))
    page.get_by_placeholder("Search metric charts").fill("test/miou$|train/loss")
    kinds = "[...document.querySelectorAll('.js-plotly-plot')].map(e => e.data[0].type)"
    page.wait_for_function(f"{kinds}.length == 2")
    assert sorted(page.evaluate(kinds)) == ["bar", "scatter"]
