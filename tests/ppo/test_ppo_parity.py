"""One update equals TRL 1.12.0's, see tests/helpers/parity.py."""

import pytest

from posttrain.ppo import forward
from tests.helpers import parity

from .tiny import GOLDEN

VARIANTS = {
    "as recorded": {},
    "gradient accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("bundle", ["plain", "whiten_rewards"])
def test_update_with_a_pass_for_every_row_equals_trl_1_12(bundle, monkeypatch):
    monkeypatch.setattr(forward, "SPARED_PADDING", 0)
    test_update_equals_trl_1_12(bundle, "as recorded")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bundle", ["plain", "whiten_rewards"])
def test_update_equals_trl_1_12(bundle, variant):
    differences = parity.run(GOLDEN / "model", GOLDEN / bundle, **VARIANTS[variant])
    for name, tolerance in parity.TOLERANCE.items():
        assert differences[name] <= tolerance, f"{name} differ by {differences[name]:.1e}"
    assert differences["advantages"] < 1e-5
    assert differences["objective/kl"] < 1e-5
