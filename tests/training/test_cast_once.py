"""Mixed precision casts a trained weight once for a generation, not once for each of its tokens."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationMixin

SHORT = (
    *("trainer.args.max_steps=1", "trainer.args.max_completion_length=8", "trainer.args.per_device_train_batch_size=8"),
    *("~reward", "+reward.letter.function=tests.helpers.rewards.letter", "trainer.args.bf16=true"),
)


class Casts(TorchDispatchMode):
    """Counts the casts of parameters, by their place in memory."""

    def __init__(self, parameters):
        super().__init__()
        self.places = {p.data_ptr() for p in parameters if p.dim() == 2 and p.requires_grad}
        self.of = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.places:
            self.of[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_generation_casts_a_weight_once(train, monkeypatch, kind):
    generate, counted = GenerationMixin.generate, []

    def counting(model, *args, **kwargs):
        with Casts(model.parameters()) as casts:
            answer = generate(model, *args, **kwargs)
        counted.append(casts.of)
        return answer

    monkeypatch.setattr(GenerationMixin, "generate", counting)
    train(f"+recipe={kind}_smollm2", *SHORT)
    assert counted
    assert all(of and set(of.values()) == {1} for of in counted)
