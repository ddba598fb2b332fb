"""Which process of a training this is, in Lightning's words."""

from __future__ import annotations

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from flair2_exp.ranks import Rank


class RankEnvironment(LightningEnvironment):
    """Processes that are there already, whoever started them.

    Lightning's own environments of SLURM and torchrun read the environment again, where another
    program may have left ranks. That of SLURM refuses `srun -n 2`, takes SIGUSR1 for itself and
    requeues the job.
    """

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank
        self.set_world_size(rank.world)
        self.set_global_rank(rank.number)  # Lightning read one when it was imported

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: Lightning is to start none."""
        return True

    @property
    def main_address(self) -> str:
        """Return the first process's machine."""
        return self._rank.address

    @property
    def main_port(self) -> int:
        """Return the port of torch's meeting point there."""
        return self._rank.port

    def local_rank(self) -> int:
        """Return which process of its machine this is."""
        return self._rank.local

    def node_rank(self) -> int:
        """Return which machine this is."""
        return self._rank.node

    def teardown(self) -> None:
        """Leave the environment's variables alone."""
