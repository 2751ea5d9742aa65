"""A chat with a model: weights, history, streamed text. Two adapters may share one base."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.models.weights import load, tokenizer
from posttrain.runs.lineage import Source, weights_location

TextSink = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Sampling options; `None` leaves one to the model's generation config. Every answer starts from `seed`."""

    max_new_tokens: int = 512
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def generation(self) -> dict[str, Any]:
        """Arguments of `generate`; temperature 0 is greedy."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        given = {"temperature": self.temperature, "top_p": self.top_p}
        chosen = {key: value for key, value in given.items() if value is not None}
        return {"do_sample": True, **chosen} if chosen else {}


@dataclass
class Dialogue:
    """One model in a chat. `adapter` is its name in a shared `PeftModel`, "" the base without one.

    `history` holds messages; without a chat template (`plain`) the model continues their joined texts.
    `cut_off` says whether the last answer was cut off by its limit of tokens.
    """

    name: str
    model: Any
    tokenizer: Any
    adapter: str | None = None
    system: str | None = None
    history: list[dict[str, str]] = field(default_factory=list)
    cut_off: bool = False

    @property
    def plain(self) -> bool:
        return not self.tokenizer.chat_template

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return length or self.tokenizer.model_max_length

    def set_system_prompt(self, system: str | None) -> None:
        """Set the system prompt and clear the history; raises `PosttrainError` where the model takes none."""
        if system and self.plain:
            raise PosttrainError(f"--system: {self.name} has no chat template, and so no system prompt")
        if system:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
            try:
                whole = self.tokenizer.apply_chat_template(turns, tokenize=False)
            except Exception as error:  # templates raise errors of their own classes
                raise PosttrainError(f"--system: the chat template of {self.name} takes none ({error})") from error
            if system.strip() not in whole:
                raise PosttrainError(f"--system: the chat template of {self.name} leaves it out")
        self.system = system
        self.history = []

    def reply(self, message: str, settings: Settings, emit: TextSink, notice: TextSink) -> str:
        """Answer `message`, giving the text to `emit` as it comes, and keep both in the history.

        A `KeyboardInterrupt` passes through; the text until then is kept. Raises `PosttrainError` where `message`
        alone is longer than the context, and then leaves the history as it was.
        """
        import torch
        from transformers import set_seed

        self.cut_off = False
        self.history.append({"role": "user", "content": message})
        tokens, room = self._fit_context(settings.max_new_tokens, notice)
        if settings.seed is not None:
            set_seed(settings.seed + len(self.history))
        given = torch.tensor([tokens], device=self.model.device)
        pieces: list[str] = []
        streamer = _streamer(self.tokenizer, pieces, emit)
        try:
            with self._active_adapter(), torch.no_grad():
                found = self.model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    streamer=streamer,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=self._eos_token_ids(),
                    **{**settings.generation(), "max_new_tokens": room},
                )
            self.cut_off = int(found[0, -1]) not in self._eos_token_ids()
        except KeyboardInterrupt:
            streamer.end()
            raise
        finally:
            self.history.append({"role": "assistant", "content": "".join(pieces)})
        return self.history[-1]["content"]

    def _fit_context(self, wanted: int, notice: TextSink) -> tuple[list[int], int]:
        """Token ids of the conversation and tokens left for the answer; drops the oldest turns where that is needed."""
        if (alone := len(self._tokens(self.history[-1:]))) >= self.context:
            self.history.pop()
            raise PosttrainError(f"that takes {alone} tokens, and the context of {self.name} is {self.context}")
        reserved, dropped = min(wanted, self.context // 2), 0
        tokens = self._tokens(self.history)
        while len(tokens) + reserved > self.context and len(self.history) > 1:
            del self.history[:2]  # a question and its answer
            dropped += 1
            tokens = self._tokens(self.history)
        if dropped:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            notice(f"{self.name}: the context of {self.context} tokens is full; the oldest {turns} forgotten")
        return tokens, min(wanted, self.context - len(tokens))

    def _tokens(self, history: list[dict[str, str]]) -> list[int]:
        from posttrain.models.tokens import token_ids

        if self.plain:
            return token_ids(self.tokenizer, "".join(turn["content"] for turn in history))
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return token_ids(self.tokenizer, [*turns, *history], generation=True)

    def _eos_token_ids(self) -> list[int]:
        """The run's own EOS ends an answer, whatever the base's generation config says."""
        known = self.model.generation_config.eos_token_id
        known = known if isinstance(known, list) else [known]
        return [token for token in dict.fromkeys([self.tokenizer.eos_token_id, *known]) if token is not None]

    def _active_adapter(self) -> AbstractContextManager[Any]:
        """A context in which this dialogue's adapter is active."""
        if self.adapter == "":
            return self.model.disable_adapter()
        if self.adapter:
            self.model.set_adapter(self.adapter)
        return nullcontext()


def _streamer(tokenizer: Any, pieces: list[str], emit: TextSink) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        """Emits whole words in the thread of the chat, so that Ctrl-C stops the answer."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            pieces.append(text)
            emit(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def load_dialogues(sources: list[Source]) -> list[Dialogue]:
    """The models of a chat, loaded; two on one base hold it once."""
    first, *others = sources
    if others and _have_one_base(first, others[0]):
        adapted, other = sorted((first, others[0]), key=lambda source: source.adapter is None)
        model = load(adapted)
        names = {id(adapted): "default", id(other): "other" if other.adapter else ""}
        if other.adapter:
            model.load_adapter(other.adapter, adapter_name="other")
            model.eval()
        return [Dialogue(s.name, model, tokenizer(s), names[id(s)]) for s in sources]
    return [Dialogue(s.name, load(s), tokenizer(s)) for s in sources]


def _have_one_base(one: Source, two: Source) -> bool:
    """Whether both have the same weights except for adapters; a bare base counts as loaded like the adapter's run."""
    if not one.adapter and not two.adapter:
        return False
    places = {weights_location(source) for source in (one, two)}
    both = one.adapter and two.adapter
    return len(places) == 1 and (not both or (one.quantization, one.dtype) == (two.quantization, two.dtype))
