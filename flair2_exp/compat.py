"""What this package uses of other libraries beyond their promises, each with its reason.

`tests/test_compat.py` fails where a new release changes any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

COMPILED_PREFIX: Final = "_orig_mod."
"""What `torch.compile(module)` puts before the module's names in a state_dict. Torch offers nothing
to take it off; people publish weights of compiled networks."""


def epochs_trained(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs a checkpoint of Lightning's had trained.

    Its `epoch` is that of the batch it was written after, whether that epoch was complete or not;
    only the loops' own progress tells.

    Raises:
        KeyError: It holds no state of a training.
    """
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def stopped_early(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether Lightning's `EarlyStopping` had ended the training of a checkpoint.

    0 is its word for "not stopped"; whatever derives from it keeps the name.
    """
    states = checkpoint.get("callbacks", {}).values()
    return any(state.get("stopped_epoch", 0) for state in states)
