"""What a run may be called and where it may write; secrets; what is printed; what is loaded."""

import ast
from pathlib import Path

import pytest

import posttrain
from posttrain.config import paths_and_secrets
from posttrain.config.schema import Run
from posttrain.console import SafeConsole, print_error, printable
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.runs import lineage
from tests.helpers.runs import compose


@pytest.mark.parametrize(
    "name",
    ["../x", "/abs", "a/b", "a\nb", "", ".", "..", ".hidden", "-x", "a b", "x" * 300, "a\x1b[31m", "a\x00", "ü" * 90],
)
def test_a_name_stays_one_component_of_a_path(name):
    run = Run(name=name)
    run.trainer.kind = "sft"
    (error,) = paths_and_secrets.check(run)
    assert error.startswith("name=")
    assert error.isprintable()


@pytest.mark.parametrize("name", ["dpo_smollm2", "run-1.5", "a", "größe", "llama+dpo", "7b"])
def test_ordinary_names_pass(name):
    assert paths_and_secrets.check(Run(name=name)) == []


def test_an_output_dir_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    for path, said in (("/dev/null", "is a file"), (str(tmp_path / "file" / "x"), "is a file"), ("", "the path of a")):
        assert said in paths_and_secrets.check(Run(output_dir=path))[0]
    assert paths_and_secrets.check(Run(output_dir=str(tmp_path / "new" / "deeper"))) == []


def test_a_name_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(PosttrainError, match=r"name=\.\./escape: expected letters"):
        preflight.check(compose("+recipe=sft_smollm2", "name='../escape'")[0])
    with pytest.raises(PosttrainError, match="name="):
        preflight.check(compose("+recipe=sft_dpo_smollm2", "name=/abs")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"data": {"args": {"hf_token": "x"}}},
        {"model": {"kwargs": {"token": "x"}}},
        {"model": {"kwargs": {"use_auth_token": True}}},
        {"reward": {"j": {"args": {"openai_api_key": "x"}}}},
        {"reward": {"j": {"args": {"apikey": "x"}}}},
        {"a": {"AWS_SECRET_ACCESS_KEY": "x"}},
        {"a": [{"password": "x"}]},
        {"a": {"client_secret": "x"}},
        {"a": {"auth-token": "x"}},
        {"a": {"note": "hf_abcdefghijklmnopqrstuvwxyz"}},
        {"a": {"endpoint": "https://me:pw@host/v1"}},
    ],
)
def test_a_secret_is_known_by_likeness(settings):
    (error,) = paths_and_secrets.secrets(settings)
    assert "a secret does not belong in a config" in error


def test_no_false_alarms():
    fine = {
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "max_tokens": 3,
        "max_new_tokens": 5,
        "tokens": True,
        "secrets": True,
    }
    fine |= {"stop_token": "x", "image_token": "x", "tokenizer": "x", "key_env": "OPENAI_API_KEY", "token": None}
    fine |= {"boi_token": "<boi>", "text_tokens": 256, "endpoint": "http://host:8000/v1", "path": "sk-learn/data"}
    fine |= {"file": "task-instructions-and-answers-2.jsonl", "id": "ORG/multi-task-preference-dataset-V2"}
    fine |= {"other": "sk-learn-instructions-and-answers"}
    assert paths_and_secrets.secrets({"a": fine}) == []


def test_a_home_folder_that_the_shell_leaves_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose("+recipe=sft_smollm2", "output_dir='~/runs'")[0].output_dir == str(tmp_path / "runs")


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x07", "\x9b31m", "\u202egnp.exe", "\u2066", "\ud800", "\x7f"])
def test_nothing_that_steers_a_terminal_is_printed(text, capsys):
    SafeConsole(force_terminal=False).print(text, markup=False)
    print_error(text)
    printed = capsys.readouterr()
    for said in (printed.out, printed.err, printable(text)):
        assert not set(text) - set("abnp.exeg[2J31m") & set(said), "the character itself"
    assert printable("naïve 😀👩‍👩‍👧 \tend\n") == "naïve 😀👩‍👩‍👧 \tend\n"


def test_colours_of_our_own_stay(capsys):
    SafeConsole(force_terminal=True, color_system="standard").print("[red]bad[/] \\[x]")
    assert "\x1b[31mbad" in capsys.readouterr().out


def test_trust_in_remote_code_is_said_at_every_load():
    """Not given, Transformers asks on a terminal. `from_pretrained` of PEFT and of generation configs runs no code."""
    silent = []
    for file in Path(posttrain.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = ast.unparse(node.func.value)
            if node.func.attr != "from_pretrained" or of in ("PeftModel", "PeftConfig", "GenerationConfig"):
                continue
            given = {keyword.arg for keyword in node.keywords}
            if not given & {"trust_remote_code", "gguf_file", None}:
                silent.append(f"{file.name}:{node.lineno} {of}")
    assert not silent


@pytest.mark.parametrize("folder", ["adapter", "model", "run"])
def test_a_pickle_is_refused_by_its_name(tmp_path, folder):
    place = tmp_path / folder
    inner = place / "model" if folder == "run" else place
    inner.mkdir(parents=True)
    name = "pytorch_model.bin" if folder == "model" else "adapter_model.bin"
    (inner / name).write_bytes(b"cos\nsystem\n")
    (inner / "adapter_config.json").write_text('{"base_model_name_or_path": "embedded:tiny"}')
    if folder == "run":
        (place / "run.json").write_text('{"status": "finished", "adapter": {}}')
    with pytest.raises(PosttrainError, match=rf"RUN=.*{folder}: {name} is a pickle, which can run code"):
        lineage.source(str(place))


def test_settings_of_common_that_a_stage_would_drop_are_named():
    stages = "{a: {trainer: sft, model: tiny, data: squad}}"
    with pytest.raises(
        PosttrainError, match=r"common\.trainer\.args\.max_steps: stages\.a\.trainer=sft begins that group"
    ):
        preflight.check(compose("job=pipeline", f"stages={stages}", "common={trainer: {args: {max_steps: 3}}}")[0])


@pytest.mark.parametrize("length", [255, 256])
def test_a_name_that_no_file_can_have(length):
    names = ("data.path", "model.chat_template", "probe.texts", "probe.safety.harmful", "+reward.mine.model")
    given = [f"{name}={'x' * length}" for name in names]
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("trainer=dpo", "model=tiny", "data.path=y", *given)[0])
    said = [line for line in str(error.value).splitlines() if "longer than 255 bytes" in line]
    assert len(said) == (len(names) if length > 255 else 0)


def test_no_error_line_shows_a_secret(tmp_path):
    token, url = "hf_abcdefghijklmnopqrstuvwx0123", "https://me:pw@host/rows.jsonl"
    given = (f"data.args.hf_token={token}", f"data.path={url}", "+data.args.api_key=a.b", "+data.args.password=987654")
    with pytest.raises(PosttrainError) as error:
        preflight.check(compose("trainer=dpo", "model=tiny", *(f"+{word.lstrip('+')}" for word in given))[0])
    said = str(error.value)
    assert not [one for one in (token, "pw", "a.b", "987654") if one in said]
    for line in ("data.args.hf_token=***", "data.args.api_key=***", "data.args.password=***", "data.path=***"):
        assert line in said


def test_a_secret_may_be_a_number():
    assert paths_and_secrets.secrets({"password": 123456})
    assert paths_and_secrets.secrets({"passwords": True, "cost_per_token": 0.1, "password": None}) == []
