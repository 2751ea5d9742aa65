"""Tokenizers, templates and precision: what goes wrong silently elsewhere is an error or a choice here."""

import shutil

import pytest
import torch

from posttrain.config.schema import ModelConfig, PeftConfig
from posttrain.data.embedded import tiny
from posttrain.errors import PosttrainError
from posttrain.models import hardware, tokenizers

CHAT = {"prompt": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny model to change."""
    shutil.copytree(tiny.tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def change(folder, **settings):
    import json

    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_padding_gets_a_token_of_its_own(folder):
    change(folder, pad_token="<|im_end|>")
    tok = tokenizers.load_tokenizer(ModelConfig(path=str(folder)))
    assert tok.pad_token == "<|endoftext|>"
    assert tok.pad_token_id != tok.eos_token_id


def test_an_explicit_padding_token_wins(folder):
    assert (
        tokenizers.load_tokenizer(ModelConfig(path=str(folder), pad_token="<|im_start|>")).pad_token == "<|im_start|>"
    )
    with pytest.raises(PosttrainError, match=r"model\.pad_token=<nope>: not in the vocabulary"):
        tokenizers.load_tokenizer(ModelConfig(path=str(folder), pad_token="<nope>"))


def test_no_eos_is_an_error(folder):
    change(folder, eos_token=None)
    with pytest.raises(PosttrainError, match=r"no EOS token; set model\.eos_token"):
        tokenizers.load_tokenizer(ModelConfig(path=str(folder)))


def test_conversations_need_a_template(folder):
    (folder / "chat_template.jinja").unlink()
    config = ModelConfig(path=str(folder))
    with pytest.raises(PosttrainError, match=r"no chat template.*set model\.chat_template"):
        tokenizers.check_template(tokenizers.load_tokenizer(config), CHAT, config)
    tokenizers.check_template(tokenizers.load_tokenizer(config), {"prompt": "plain text needs none"}, config)


def test_a_template_from_a_file(folder, tmp_path):
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    config = ModelConfig(path=str(folder), chat_template=str(tmp_path / "mine.jinja"))
    tok = tokenizers.load_tokenizer(config)
    tokenizers.check_template(tok, CHAT, config)
    assert tok.apply_chat_template(CHAT["prompt"], tokenize=False) == "[user]Hi<|im_end|>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Is a directory; give a Jinja file"),
        (b"", "is empty; give a Jinja file"),
        (b"{# \xe9 #}", "is not UTF-8 (byte 3); save it as UTF-8"),
        (b"a\n{% if x %}", "line 2: Unexpected end of template"),
    ],
)
def test_a_file_that_holds_no_template_is_named(folder, tmp_path, content, message):
    file = tmp_path / "mine.jinja"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(PosttrainError) as caught:
        tokenizers.load_tokenizer(ModelConfig(path=str(folder), chat_template=str(file)))
    assert str(caught.value).startswith(f"model.chat_template={file}: {message}")


def test_a_byte_order_mark_is_no_part_of_a_template(folder, tmp_path):
    text = (folder / "chat_template.jinja").read_text()
    (tmp_path / "mine.jinja").write_text(text, encoding="utf-8-sig")
    tok = tokenizers.load_tokenizer(ModelConfig(path=str(folder), chat_template=str(tmp_path / "mine.jinja")))
    assert tok.chat_template == text


def test_a_template_may_ask_for_a_system_turn(folder):
    template = folder / "chat_template.jinja"
    asks = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('needs a system turn') }}{% endif %}"
    template.write_text(asks + template.read_text())
    config, system = ModelConfig(path=str(folder)), {"role": "system", "content": "s"}
    tok, answer = tokenizers.load_tokenizer(config), [{"role": "assistant", "content": "b"}]
    prompt = [system, *CHAT["prompt"]]
    for row in ({"prompt": prompt}, {"prompt": prompt, "chosen": answer}, {"messages": [*prompt, *answer]}):
        tokenizers.check_template(tok, row, config)
    with pytest.raises(PosttrainError, match="cannot render the first row: needs a system turn"):
        tokenizers.check_template(tok, CHAT, config)
    tok.eos_token = "<|endoftext|>"
    with pytest.raises(PosttrainError, match=r"ends an assistant turn with <\|im_end\|>"):
        tokenizers.check_template(tok, {"prompt": prompt}, config)


def test_a_turn_that_does_not_end_with_eos_is_an_error(folder):
    config = ModelConfig(path=str(folder), eos_token="<|endoftext|>", pad_token="<|im_start|>")
    with pytest.raises(PosttrainError, match=r"ends an assistant turn with <\|im_end\|>.*set model\.eos_token"):
        tokenizers.check_template(tokenizers.load_tokenizer(config), CHAT, config)


def test_the_loss_covers_the_end_of_turn(train, monkeypatch):
    from posttrain.training import build

    kept = {}
    original = build.build
    monkeypatch.setattr(build, "build", lambda kind, parts: kept.setdefault("trainer", original(kind, parts)))
    train("+recipe=sft_smollm2")
    trainer = kept["trainer"]
    batch = next(iter(trainer.get_train_dataloader()))
    eos, pad = trainer.processing_class.eos_token_id, trainer.processing_class.pad_token_id
    for labels in batch["labels"]:
        learnt = labels[labels != -100].tolist()
        assert eos in learnt
        assert pad not in learnt
        assert bytes("yes", "ascii").decode() in trainer.processing_class.decode(learnt)


@pytest.mark.parametrize(
    ("cuda", "bf16", "peft", "args", "expected"),
    [
        (False, False, "lora", {}, ("CPU", "float32", False, False)),
        (False, True, "lora", {}, ("CPU", "bfloat16", True, False)),
        (False, True, "none", {}, ("CPU", "float32", True, False)),
        (False, True, "lora", {"bf16": False}, ("CPU", "float32", False, False)),
        (True, True, "lora", {}, ("A100", "bfloat16", True, False)),
        (True, False, "lora", {}, ("A100", "float16", False, True)),
        (True, False, "none", {}, ("A100", "float32", False, True)),
        (True, True, "lora", {"fp16": True}, ("A100", "float16", False, True)),
        (True, True, "lora", {"use_cpu": True, "bf16": False}, ("CPU", "float32", False, False)),
    ],
)
def test_precision_follows_the_machine_and_an_explicit_choice_wins(monkeypatch, cuda, bf16, peft, args, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A100")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    chosen = hardware.precision(ModelConfig(), PeftConfig(method=peft), args)
    assert (chosen.device, chosen.dtype, chosen.bf16, chosen.fp16) == expected
    assert hardware.precision(ModelConfig(dtype="float16"), PeftConfig(method=peft), args).dtype == "float16"


def test_an_adapter_is_not_a_whole_model(train):
    run = train("+recipe=sft_smollm2")
    with pytest.raises(PosttrainError, match="an adapter, not a whole model"):
        train("+recipe=dpo_smollm2", f"model.path={run.path}")


def test_a_full_run_is_a_model(train):
    run = train("+recipe=sft_smollm2", "peft=none")
    assert train("+recipe=dpo_smollm2", f"model.path={run.path}").finished()
