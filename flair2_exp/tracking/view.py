"""The prepared view of an experiment's runs on MLflow's pages: by score, columns worth seeing.

MLflow 3.17 keeps a view as a tag of the experiment, lists it under "Views", and opens it by
`viewStateShareKey` in a page's address. Columns can be given in no other way: the address itself
holds filter and order only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from flair2_exp.config.tracking import TrackingConfig
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

_CHOSEN: Final = {
    "metrics.`test/miou`": 90,
    "metrics.`best/val/miou`": 110,
    "metrics.`val/miou`": 90,
    f"tags.`{Tag.ROW}`": 110,
    f"tags.`{Tag.SEED}`": 95,
    f"tags.`{Tag.MODEL}`": 110,
    "attributes.`Dataset`": 260,
}
"""Columns with their widths in pixels, in this order."""
_COLUMNS: Final = {
    "attributes.`Run Name`": 230,
    **_CHOSEN,
    "runDateAndNestInfo": 130,
    "duration": 80,
}
"""With those that MLflow always shows; the last two by the names that its table has for them."""
_ORDER: Final = "metrics.`test/miou`"
_NAME: Final = "By test score"
_PAGE: Final = {"workflowType": "machine_learning"}
"""Without it MLflow shows the menus for language models."""


def view() -> str:
    """Return the view as MLflow's pages store it."""
    state = {
        "orderByKey": _ORDER,
        "orderByAsc": False,
        "selectedColumns": list(_CHOSEN),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }
    return json.dumps({"name": _NAME, "createdAt": 0, "state": json.dumps(state)})


def address(host_port: str, store: Store, experiment: str = TrackingConfig.experiment) -> str:
    """Return the address of the prepared view; the experiment is given it where it lacks it.

    Args:
        host_port: Where MLflow's pages are served, as `127.0.0.1:5000`.
        store: The store that they show.
        experiment: The experiment's name. Where the store has none of that name, it is the one
            that was written last; where it has none at all, the page that lists them is returned.

    Raises:
        TrackingError: The store does not answer.
    """

    def prepare(client: MlflowClient) -> str:
        chosen = _experiment(client, experiment)
        if chosen is None:
            return ""
        if chosen.tags.get(Tag.VIEW) != view():
            client.set_experiment_tag(chosen.experiment_id, Tag.VIEW, view())
        return str(chosen.experiment_id)

    number = store.call("preparing the view of the runs", prepare)
    if not number:
        return f"http://{host_port}/#/experiments"
    key = Tag.VIEW.rpartition(".")[2]
    return f"http://{host_port}/{runs_page(number, viewStateShareKey=key)}"


def runs_page(experiment_id: str, **query: str) -> str:
    """Return the place of an experiment's runs table, relative to MLflow's address."""
    return f"#/experiments/{experiment_id}/runs?{urlencode(_PAGE | query, quote_via=quote)}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the place of a run's page, relative to MLflow's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{urlencode(_PAGE)}"


def tagged_runs_page(experiment_id: str, tag: str, value: str) -> str:
    """Return the place of the runs table with the runs of one tag, by score; see `runs_page`."""
    quotation = '"' if "'" in value else "'"
    condition = f"tags.`{tag}` = {quotation}{value}{quotation}"
    return runs_page(experiment_id, searchFilter=condition, orderByKey=_ORDER, orderByAsc="false")


def _experiment(client: MlflowClient, name: str) -> Experiment | None:
    named = client.get_experiment_by_name(name)
    if named is not None and named.lifecycle_stage == "active":
        return named
    others = [each for each in client.search_experiments() if each.experiment_id != "0"]
    runs = client.search_runs(
        [each.experiment_id for each in others], order_by=["attributes.start_time DESC"],
        max_results=1,
    ) if others else []  # fmt: skip
    newest = runs[0].info.experiment_id if runs else None
    return next((each for each in others if each.experiment_id == newest), None)
