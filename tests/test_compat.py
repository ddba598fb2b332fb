"""Private names of other libraries still mean what `flair2_exp.compat` takes them for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.types import RunMode
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from flair2_exp import compat
from flair2_exp.compat import MLFLOW_PLACES
from flair2_exp.config.groups import config_folder
from flair2_exp.tracking.store import local_uri, open_store


def test_a_shared_storage_is_seen_by_another_process() -> None:
    tensor = torch.empty(0, dtype=torch.uint8).set_(compat.shared_storage(100)).resize_(100)
    assert tensor.is_shared()
    tensor.zero_()
    child = os.fork()
    if not child:
        tensor.numpy()[:] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert tensor.tolist() == [7] * 100


def test_memory_is_that_of_the_tensors_alive_at_once() -> None:
    """A view of what was there before takes none, and neither does what is freed in between."""
    weights = torch.rand(100, 50, requires_grad=True)
    with compat.counting_memory() as peak:
        assert peak() == 0
        turned = weights.t()
        assert peak() == 0
        doubled = (turned * 2).exp()  # 2 x 20 kB, of which the product is freed
        assert 40_000 <= peak() < 41_000
        torch.rand(100, 25)
        assert peak() < 41_000
        further = [torch.rand(100, 50) for _ in range(3)]
        assert 80_000 <= peak() < 81_000
        del further
        doubled.sum().backward()
    assert 80_000 <= peak() < 81_000


def test_a_loader_has_workers_from_its_first_epoch_on() -> None:
    others = set(multiprocessing.active_children())  # joblib keeps its own, from another test
    data: Any = list(range(4))
    loader: DataLoader[Any] = DataLoader(
        data, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    assert not compat.has_workers(loader)
    assert len(list(loader)) == 4
    assert compat.has_workers(loader)
    assert len(list(loader)) == 4
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 1
    compat.end_workers(loader)
    assert not compat.has_workers(loader)
    assert not any(worker.is_alive() for worker in workers)
    assert len(list(loader)) == 4


def test_a_loader_without_workers_never_has_any() -> None:
    data: Any = list(range(4))
    loader: DataLoader[Any] = DataLoader(data)
    list(loader)
    compat.end_workers(loader)
    assert not compat.has_workers(loader)


def test_a_compiled_networks_names_have_a_prefix() -> None:
    names = torch.compile(torch.nn.Linear(2, 2)).state_dict()
    assert set(names) == {f"{compat.COMPILED_PREFIX}{name}" for name in ("weight", "bias")}


class _Line(LightningModule):
    """Learns nothing, and logs a loss that never falls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("loss", 1.0, on_step=False, on_epoch=True)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_tells_its_epochs_and_whether_patience_ended_it(tmp_path: Path) -> None:
    for patience, epochs, early in ((1, 2, True), (9, 3, False)):
        trainer = Trainer(
            accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False,
            callbacks=[EarlyStopping("loss", patience=patience, check_on_train_epoch_end=True)],
        )  # fmt: skip
        trainer.fit(_Line(), DataLoader(torch.ones(2, 1)))  # type: ignore[arg-type]
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
        assert compat.epochs_trained(checkpoint) == epochs
        assert compat.stopped_early(checkpoint) == early


def test_mlflows_database_keeps_places_where_we_set_them_right(tmp_path: Path) -> None:
    store = open_store(local_uri(tmp_path))
    experiment = store.ensure_experiment("flair2")
    store.call("making", lambda client: client.create_run(experiment))
    address = tmp_path.as_uri()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            holds = " OR ".join(f"instr({column}, ?)" for column in columns)
            found = connection.execute(
                f"SELECT 1 FROM {table} WHERE {holds}", [address] * len(columns)
            ).fetchone()
            assert not found or table in dict(MLFLOW_PLACES), table
        for table, column in MLFLOW_PLACES:
            connection.execute(f"SELECT {column} FROM {table}")


def test_a_config_file_is_checked_before_hydra_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    checked = []
    with (
        compat.files_checked(lambda name, path: checked.append((name, path))),
        compat.opened_hydra("flair2_exp", tmp_path, None) as hydra,
    ):
        hydra.compose_config("config", [], RunMode.RUN)
    assert ("config", tmp_path / "config.yaml") in checked


def test_hydra_completes_the_last_override_of_a_line() -> None:
    with compat.opened_hydra("flair2_exp", config_folder(), None) as hydra:
        for line, word in (
            ("hydra/launcher=bas", "hydra/launcher=basic"),
            ("model=unet hydra.job.na", "hydra.job.name="),
            ("trainer.max_ep", "trainer.max_epochs="),
        ):
            assert word in compat.hydra_completions(hydra, "config", line)
        assert compat.hydra_completions(hydra, "config", "no_such_option_is_the") == []


def test_a_trainer_leaves_signals_and_the_checkpoints_of_a_cluster_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.handlers: list[Any] = []

        def training_step(self, batch: Any) -> Any:
            self.handlers.append(signal.getsignal(signal.SIGTERM))
            return self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def trained(*, left_alone: bool) -> tuple[Net, int]:
        trainer = Trainer(
            accelerator="cpu", devices=1, max_epochs=2, logger=False, default_root_dir=tmp_path,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            plugins=[LightningEnvironment()],
        )  # fmt: skip
        if left_alone:
            compat.leave_the_cluster_alone(trainer)
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
        net = Net()
        trainer.fit(net, DataLoader(torch.ones(3, 1)))  # type: ignore[arg-type]
        if not left_alone:
            trainer.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
        return net, len(net.handlers)

    before = signal.getsignal(signal.SIGTERM)
    first, steps = trained(left_alone=False)
    assert steps == 6
    assert before not in first.handlers
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert trained(left_alone=False)[1] == 0  # Lightning has taken it: that training had ended
    again, steps = trained(left_alone=True)
    assert steps == 6
    assert set(again.handlers) == {before}


ENDING = """
import atexit, sys, threading, time
from flair2_exp.compat import end_process
def late(): time.sleep(0.2); print("thread")
atexit.register(print, "handler")
threading.Thread(target=late).start()
sys.stdout.write("written, ")
end_process({status!r})
"""


@pytest.mark.parametrize(("status", "code"), [(None, 0), (3, 3), ("a text", 1)])
def test_a_process_ends_with_its_threads_handlers_and_streams(status: object, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(status=status)], capture_output=True, text=True
    )
    assert done.stdout == "written, thread\nhandler\n"
    assert (done.returncode, done.stderr) == (code, "a text\n" if code == 1 else "")
