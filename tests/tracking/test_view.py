from __future__ import annotations

import json
from collections.abc import Callable

from flair2_exp.tracking.run import Run
from flair2_exp.tracking.store import Store
from flair2_exp.tracking.tags import Tag
from flair2_exp.tracking.view import address, tagged_runs_page


def test_the_address_is_that_of_the_named_experiment_which_gets_the_view_once(
    store: Store, experiment: str
) -> None:
    name = store.call("x", lambda client: client.get_experiment(experiment)).name
    for _ in range(2):
        place = address("127.0.0.1:5000", store, name)
        assert place.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?")
        assert "viewStateShareKey=flair2" in place
        tags = store.call("x", lambda client: client.get_experiment(experiment)).tags
        state = json.loads(json.loads(tags[Tag.VIEW])["state"])
        assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/miou`", False)
        assert f"tags.`{Tag.ROW}`" in state["selectedColumns"]


def test_without_the_named_experiment_it_is_that_of_the_newest_run(
    store: Store, experiment: str, start: Callable[..., Run]
) -> None:
    start().finish()
    assert f"/experiments/{experiment}/runs?" in address("127.0.0.1:5000", store, "nowhere")


def test_runs_of_a_tag_are_filtered_by_a_text_that_mlflow_reads() -> None:
    place = tagged_runs_page("1", Tag.SWEEP, "it's")
    assert place.startswith("#/experiments/1/runs?workflowType=machine_learning&searchFilter=")
    assert "tags.%60flair2.sweep%60%20%3D%20%22it%27s%22" in place
