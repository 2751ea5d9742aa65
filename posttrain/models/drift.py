"""The difference between two versions of a model on held-out prompts: KL in nats, or the score of a reward model."""

from dataclasses import dataclass
from typing import Any

from posttrain.models.tokens import token_ids
from posttrain.runs.lineage import Source

# Tokens of a prompt and of the adapter's own answer, and positions at the end that are compared. Log-probabilities over
# a large vocabulary take 0.5 MB a position, and those of all prompts stay in memory.
LONGEST, ANSWER, POSITIONS = 512, 16, 48
BUILT_IN = (
    *("What is the capital of France?", "Explain in two sentences how a rainbow comes about.", "2 + 3 * 4 ="),
    *("Write a Python function that reverses a string.", "Give three reasons to learn a second language."),
    *("Who wrote the play Hamlet, and about when?", "Translate into German: The weather is nice today."),
    "Summarize: The committee met on Monday. It approved the budget and put off the choice of a new chair.",
)


@dataclass(frozen=True)
class Drift:
    """The difference between the merged model and the adapter on its base, over `positions` of `prompts`.

    `mean` and `largest` are KL(adapter || merged) in nats per position, for a reward model the absolute difference of
    its scores (`unit`). `effect` is the same between adapter on and off: what training changed; for a reward model the
    standard deviation of its scores. `original` is the mean after merging into the original weights (QLoRA only).
    """

    mean: float
    largest: float
    prompts: int
    positions: int
    effect: float
    unit: str = "nats"
    original: float | None = None

    def describe(self) -> list[str]:
        """The figures in words, a line each."""
        if self.unit == "nats":
            what, where = (
                "KL(adapter || merged)",
                f" nats over {self.positions} positions of {self.prompts} prompt{'s' * (self.prompts != 1)}",
            )
            effect = "what training changed, KL(adapter || base)"
        else:
            what, where = "score difference of adapter and merged", f" on {self.prompts} texts"
            effect = "standard deviation of the scores"
        lines = [f"{what}: mean {self.mean:.2g}, largest {self.largest:.2g}{where}", f"{effect}: {self.effect:.2g}"]
        if self.original is not None:
            lines.append(f"merged into the original, unquantized weights it would be: mean {self.original:.2g}")
        if self.lost:
            lines.append("that is not far below what training changed: some of it may be lost in rounding")
        return lines

    @property
    def lost(self) -> bool:
        """Whether the drift is as large as half of what training changed."""
        return self.mean > self.effect / 2


class ReferenceOutputs:
    """The reference model's outputs on prompts, kept on the CPU, so that the other model can take its place."""

    def __init__(self, reference: Any, tokenizer: Any, prompts: list[Any], scores: bool):
        """`reference` is a `PeftModel`; `prompts` are texts or lists of messages; `scores`: a reward model."""
        self.scores = scores
        self.encoded = [_encode(tokenizer, prompt, scores) for prompt in prompts]
        if not scores:
            self.encoded = [_with_own_answer(reference, tokens) for tokens in self.encoded]
        self.expected = [self._outputs(reference, tokens) for tokens in self.encoded]
        self.effect = self._effect(reference)

    def distances(self, model: Any) -> Any:
        """KL(reference || model) in nats per position, (positions,); of reward models |score difference|, (texts,)."""
        import torch

        parts = []
        for reference, tokens in zip(self.expected, self.encoded, strict=True):
            found = self._outputs(model, tokens)
            # Rounding can make a KL of 0 slightly negative.
            kl = (reference.exp() * (reference - found)).sum(-1).clamp(min=0)
            parts.append((reference - found).abs() if self.scores else kl)
        return torch.cat(parts)

    def drift(self, model: Any) -> Drift:
        """`model` against the reference."""
        apart = self.distances(model)
        unit = "score" if self.scores else "nats"
        return Drift(float(apart.mean()), float(apart.max()), len(self.encoded), len(apart), self.effect, unit)

    def _outputs(self, model: Any, tokens: list[int]) -> Any:
        """Log-probabilities (positions, vocabulary) at the last positions, or the score (1,); float32, on the CPU."""
        import torch

        given = torch.tensor([tokens], device=model.device)
        with torch.no_grad():
            if self.scores:
                return model(input_ids=given).logits[0].float().cpu()
            return model(input_ids=given, logits_to_keep=POSITIONS).logits[0].float().log_softmax(-1).cpu()

    def _effect(self, reference: Any) -> float:
        import torch

        if self.scores:  # with the adapter off the score head is a random one
            return float(torch.cat(self.expected).std(correction=0))
        with reference.disable_adapter():
            return float(self.distances(reference).mean())


def held_out(source: Source) -> list[Any]:
    """The run's held-out prompts (with an answer for a reward model), or general ones where the run has none."""
    from posttrain.runs.metrics import read

    rows = read(source.run.prompts) if source.run else []
    prompts = [row["prompt"] + row["chosen"] if source.scores else row["prompt"] for row in rows]
    return prompts or list(BUILT_IN)


def _encode(tokenizer: Any, prompt: Any, scores: bool) -> list[int]:
    if prompt in BUILT_IN and tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    if scores and isinstance(prompt, str) and not prompt.endswith(tokenizer.eos_token):
        prompt += tokenizer.eos_token  # as TRL's RewardTrainer does
    return token_ids(tokenizer, prompt, generation=not scores)[-LONGEST:]


def _with_own_answer(model: Any, tokens: list[int]) -> list[int]:
    """A prompt with the first tokens of the model's own answer, where the merged model matters most."""
    import torch

    given, pad = torch.tensor([tokens], device=model.device), model.generation_config.pad_token_id
    whole = model.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=ANSWER,
        pad_token_id=0 if pad is None else pad,
        **{"do_sample": False, "temperature": None, "top_p": None, "top_k": None},
    )
    return whole[0].tolist()
