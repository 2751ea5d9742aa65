"""A prompt that is computed once gives what it gave when it was computed for each answer: exactly, or not at all."""

import pytest
import torch
from transformers import GPTNeoConfig

from posttrain.models import block_mask, prompt_tree, shared_prompt, shared_within
from posttrain.models.prompt_tree import Row
from tests.helpers.tiny_models import VOCABULARY, tiny

SHARED = ["llama", "qwen3", "mistral_window", "gemma2", "gpt2", "phi", "mixtral", "qwen3_moe"]


def pairs(side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Two pairs of rows of up to 20 tokens, 12 of them the prompt: ids and mask, both (4, 20)."""
    ids = torch.randint(3, VOCABULARY, (4, 20), generator=torch.Generator().manual_seed(1))
    ids[2:, :12] = ids[:2, :12]
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[2, 18:] = 0
    if side == "left":  # as GRPO pads: the prompt on the left, the completion on the right
        ids, mask = torch.cat([ids[:, :3], ids], 1), torch.cat([torch.ones_like(mask[:, :3]), mask], 1)
        mask[0, :3] = mask[2, :3] = 0
    return ids * mask, mask


def states(model, ids, mask, **kwargs):
    """Hidden states of real tokens, and the gradient of every parameter for a loss over all of them."""
    model.zero_grad()
    output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **kwargs)
    hidden = output.last_hidden_state * mask[..., None]
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, output


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1e-3))


def computed(model) -> list[torch.Size]:
    """The shapes that the backbone computes, from now on."""
    shapes: list[torch.Size] = []
    inner = model.base_model.forward.__self__.inner
    model.base_model.forward.__self__.inner = lambda **kw: shapes.append(kw["input_ids"].shape) or inner(**kw)
    return shapes


@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_states_and_gradients_are_those_of_the_unshared_path(family, side):
    model, (ids, mask) = tiny(family).train(), pairs(side)
    if side == "left" and family == "llama":
        model.gradient_checkpointing_enable()
    wanted, gradients, _ = states(model, ids, mask)
    assert shared_prompt.share_prompts(model) is None
    shapes = computed(model)
    found, others, _ = states(model, ids, mask)
    assert shapes == [(2, 26)], "two prompts of 12 tokens, and up to 8 + 6 or 3 + 8 of answers"
    assert same(found, wanted)
    assert gradients.keys() == others.keys()
    assert all(same(others[name], gradients[name]) for name in gradients)


def test_router_logits_are_those_of_the_rows():
    model, (ids, mask) = tiny("mixtral"), pairs()
    wanted = states(model, ids, mask, output_router_logits=True)[2].router_logits
    shared_prompt.share_prompts(model)
    shapes = computed(model)
    found = states(model, ids, mask, output_router_logits=True)[2].router_logits
    assert shapes == [(2, 26)]
    real = mask.flatten().bool()
    assert all(same(a[real], b[real]) for a, b in zip(found, wanted, strict=True))


def test_a_model_without_a_backbone_is_left_alone(monkeypatch):
    """The prefix in Llama 4's text model names no module, so Transformers gives the whole model as its backbone."""
    model = tiny("llama")
    monkeypatch.setattr(type(model), "base_model_prefix", "language_model")
    assert model.base_model is model
    with shared_within.prefilling_once(model), torch.no_grad():
        found = model.generate(torch.tensor([[5, 6, 7]] * 2), max_new_tokens=2, do_sample=False)
    assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize(
    ("family", "attention", "said"),
    [
        ("mamba", None, "linear_attention"),
        ("bloom", None, "no positions"),
        ("llama", "flash_attention_2", "sdpa does"),
    ],
)
def test_what_cannot_be_shared_is_left_alone_and_says_why(family, attention, said):
    model = tiny(family)
    if attention:
        model.config._attn_implementation = attention
    before = model.base_model.forward
    reason = shared_prompt.share_prompts(model)
    assert reason is not None
    assert said in reason
    assert model.base_model.forward == before


def test_a_window_longer_than_the_trial_is_seen_in_the_config():
    """GPT-Neo's counts columns; the short rows of the trial lie within it."""
    config = GPTNeoConfig(hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]])
    assert shared_prompt.unsupported_reason(config, "eager") == "the model has layers of local"
    config.attention_layers = ["global"] * 2
    assert shared_prompt.unsupported_reason(config, "eager") is None


def test_an_architecture_that_reads_masks_in_its_own_way_is_found_out(monkeypatch):
    """It takes any mask, and sees with it what it likes."""
    model = tiny("llama")
    inner = model.base_model.forward
    model.base_model.forward = lambda position_ids=None, attention_mask=None, **kw: inner(**kw)
    reason = shared_prompt.share_prompts(model)
    assert reason == "LlamaModel gives other results for rows that are put together"


def test_calls_that_are_not_plain_rows_go_through_as_they_are():
    model, (ids, mask) = tiny("llama"), pairs()
    shared_prompt.share_prompts(model)
    shapes = computed(model)
    body = model.base_model

    def alone(**kwargs):
        shapes.clear()
        with torch.no_grad():
            body(**{"input_ids": ids, "attention_mask": mask, "use_cache": False, **kwargs})
        return shapes == [ids.shape]

    assert not alone()
    assert alone(use_cache=True), "somebody wants the keys and values"
    assert alone(output_hidden_states=True)
    holes = mask.clone()
    holes[0, 5] = 0
    assert alone(attention_mask=holes)
    packed = torch.arange(20).repeat(4, 1)
    packed[:, 10:] -= 10
    assert alone(attention_mask=None, position_ids=packed), "positions begin anew: several sequences in a row"
    assert alone(input_ids=torch.arange(80).view(4, 20) % VOCABULARY), "nothing in common"


def test_noise_of_dropout_is_drawn_for_each_answer():
    model, (ids, mask) = tiny("gpt2", resid_pdrop=0.1).train(), pairs()
    shared_prompt.share_prompts(model)
    shapes = computed(model)
    for training, wanted in ((True, (4, 20)), (False, (2, 26))):
        model.train(training)
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        assert shapes.pop() == wanted


def test_groups_of_any_number_and_order_share_where_it_saves_most():
    prompt, other = list(range(10, 40)), list(range(50, 60))
    tokens = [[*prompt, 1, 2], [*other, 3], [*prompt, 4], [*prompt[:5], 7, 8], [*prompt, 1, 5, 6], [*other, 3, 9]]
    groups = prompt_tree.group([Row(t, 0, 0) for t in tokens], hidden=64)
    found = {tuple(sorted(one.rows)): (one.shared, one.length) for one in groups}
    assert found == {(0, 2, 4): (30, 36), (3,): (7, 7), (1, 5): (11, 12)}
    # At other positions the same tokens are something else.
    moved = prompt_tree.group([Row([*prompt, 1], 0, 0), Row([*prompt, 2], 3, 3)], hidden=64)
    assert sorted(one.rows for one in moved) == [[0], [1]]


def test_long_answers_to_a_short_prompt_are_not_put_into_one_row():
    """Attention grows with the square of a row: eight answers of 500 tokens would see a mask of 4,100 x 4,100."""
    rows = [Row([5] * 20 + [n] * 500, 0, 0) for n in range(6, 14)]
    assert prompt_tree.arrange(torch.zeros(8, 520, dtype=torch.long), rows, hidden=64) is None


def test_a_mask_hides_one_answer_from_the_other():
    rows = [Row([7, 8, 1, 2], 0, 0), Row([7, 8, 3], 0, 0)]
    ids = torch.tensor([[7, 8, 1, 2], [7, 8, 3, 0]])
    layout = prompt_tree.arrange(ids, rows, hidden=64)
    assert layout is not None
    order = ids.flatten()[layout.source][0].tolist()
    at = {token: n for n, token in enumerate(order)}
    seen = layout.attention_mask()[0, 0]
    assert [layout.position[0, at[t]].item() for t in (7, 8, 1, 2, 3)] == [0, 1, 2, 3, 2]
    assert {(t, u) for t in at for u in at if seen[at[t], at[u]]} == {
        *((t, t) for t in at),
        *((8, 7), (1, 7), (1, 8), (2, 7), (2, 8), (2, 1), (3, 7), (3, 8)),
    }
    narrow = layout.attention_mask(window=2)[0, 0]
    assert not narrow[at[3], at[7]]
    assert narrow[at[3], at[8]]


@pytest.mark.parametrize("window", [None, 3])
def test_the_mask_of_flex_attention_is_the_same(window):
    ids = torch.tensor([[7, 8, 1, 2, 4], [7, 8, 3, 0, 0], [5, 6, 9, 1, 0], [5, 6, 2, 2, 2]])
    rows = [Row(row[: len(row) - row.count(0)], 0, 0) for row in ids.tolist()]
    layout = prompt_tree.arrange(ids, rows, hidden=64)
    assert layout is not None
    mask = block_mask.block_mask(layout, window)
    places = torch.arange(layout.group.size(1))
    at = [[[mask.mask_mod(torch.tensor(b), torch.tensor(0), q, k) for k in places] for q in places]
          for b in range(len(layout.group))]  # fmt: skip
    assert torch.equal(torch.tensor(at), layout.attention_mask(window)[:, 0])


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma2"])
def test_answers_to_one_prompt_read_it_once_before_generation(family):
    model, (ids, mask) = tiny(family).eval(), pairs("left")
    prompts = {"input_ids": ids[[0, 1, 0, 0, 1], :15], "attention_mask": mask[[0, 1, 0, 0, 1], :15]}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(**prompts, **options)
    with shared_within.prefilling_once(model):
        shapes = computed(model)
        found = model.generate(**prompts, **options)
    assert shapes[:2] == [(2, 15), (5, 1)]
    assert found.tolist() == wanted.tolist()
    assert not shared_prompt.is_shared(model)
