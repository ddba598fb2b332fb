from __future__ import annotations

from typing import Any

import pytest
import torch

from flair2_exp.config.training import OptimizerConfig
from flair2_exp.errors import ConfigError
from flair2_exp.training.optimizers import build_optimizer


def _parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3))]


def test_any_optimizer_of_torch_is_found_by_its_path() -> None:
    options = OptimizerConfig(
        _target_="torch.optim.RMSprop", lr=0.1, weight_decay=0.01, options={"alpha": 0.9}
    )
    optimizer = build_optimizer(_parameters(), options)
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["alpha"] == 0.9


BOTH = {"fused": True, "foreach": True}


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "torch.optim.Adamm",
            {},
            r"optimizer\._target_=torch.optim.Adamm: torch.optim has no Adamm",
        ),
        ("os.system", {}, r"not such a class\.\nExpected .* torch.optim.optimizer.Optimizer"),
        ("builtins.eval", {}, "not such a class"),
        ("torch.optim.AdamW", {"momentum": 0.9}, r"options\.momentum: AdamW .*no such option"),
        ("torch.optim.SGD", {"momentum": -1.0}, "Invalid momentum"),
        ("torch.optim.Adam", BOTH, "cannot be `True` together"),
    ],
)
def test_what_is_no_optimizer_or_no_option_is_refused_in_two_lines(
    target: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        build_optimizer(_parameters(), OptimizerConfig(_target_=target, options=options))
    assert len(str(refusal.value).splitlines()) <= 2


class Signs(torch.optim.Optimizer):
    """A user's own: steps by the gradient's sign."""

    def __init__(self, params: Any, lr: float = 0.1, damping: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "damping": damping})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                each.data -= group["lr"] * group["damping"] * each.grad.sign()


def test_an_optimizer_of_ones_own_gets_what_it_names() -> None:
    target = f"{__name__}.Signs"
    options = OptimizerConfig(_target_=target, lr=0.5, options={"damping": 2})
    assert build_optimizer(_parameters(), options).defaults == {"lr": 0.5, "damping": 2.0}
    with pytest.raises(ConfigError, match=r"weight_decay=0\.1: \S+Signs has no weight decay"):
        build_optimizer(_parameters(), OptimizerConfig(_target_=target, weight_decay=0.1))
    with pytest.raises(ConfigError, match=r"damp: Signs .*did you mean damping\?"):
        build_optimizer(_parameters(), OptimizerConfig(_target_=target, options={"damp": 0.1}))
