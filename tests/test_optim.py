from itertools import pairwise

import pytest
from torch import nn

from storydist.training.optim import OptimConfig, build_optimizer, learning_rate_at


def test_learning_rate_warms_up_and_decays_to_its_final_fraction():
    config = OptimConfig(learning_rate=2.0, warmup_steps=10, final_fraction=0.1)
    rates = [learning_rate_at(step, 110, config) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * s for s in range(1, 11)])
    assert rates[59] == pytest.approx(2.0 * 0.55)  # half way down
    assert rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_no_warm_up_is_allowed():
    assert learning_rate_at(1, 10, OptimConfig(learning_rate=1.0, warmup_steps=0)) < 1.0


def test_only_matrices_and_filters_decay():
    model = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "words": nn.Embedding(4, 2)})
    decayed, rest = build_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert [p is model["linear"].weight for p in decayed["params"]] == [True]
    assert (decayed["weight_decay"], rest["weight_decay"], len(rest["params"])) == (0.3, 0.0, 4)
