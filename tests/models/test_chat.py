"""The chat: what the model gets, what it says, and what a pipe, Ctrl-C and bad input do."""

import io
import json
import shutil
from pathlib import Path

import pytest

from posttrain import chat
from posttrain.data.embedded import tiny
from posttrain.errors import PosttrainError
from posttrain.models import dialogue, weights
from posttrain.runs import lineage
from tests.helpers.runs import SMALL, compose, write_pairs

GREEDY = ("--temperature", "0", "--max-new-tokens", "8")
SETTINGS = dialogue.Settings(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two LoRA runs on one base, and a 4-bit one, that have learnt to answer in different words."""
    from posttrain.jobs.train import train
    from posttrain.runs.directory import RunDirectory

    folder = tmp_path_factory.mktemp("runs")
    write_pairs(folder / "pairs.jsonl")
    own = (f"data.path={folder}/pairs.jsonl", f"output_dir={folder}", "trainer.args.learning_rate=2e-2")
    own += ("trainer.args.eval_strategy=no", "trainer.args.eval_on_start=false", "trainer.args.save_strategy=no")
    made = []
    for extra in (("name=one",), ("name=two", "trainer.args.seed=7"), ("name=four", "peft=qlora")):
        run, origin = compose("+recipe=sft_smollm2", *SMALL, *own, "trainer.args.num_train_epochs=6", *extra)
        train(run, origin)
        made.append(str(RunDirectory.of(run, origin).path))
    return made


def say(monkeypatch, capsys, text, *args):
    """Answers and notices of the command with `text` piped in."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = chat.main([*args, *GREEDY])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def answer(run, message, system=None):
    """What the run answers, by Transformers' own generate."""
    from transformers import AutoTokenizer

    source = lineage.source(run)
    model, tokenizer = weights.load(source), AutoTokenizer.from_pretrained(source.tokenizer)
    turns = [{"role": "system", "content": system}] if system else []
    given = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": message}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    whole = model.generate(**given, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(whole[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_pipe_gets_the_answers_alone(runs, monkeypatch, capsys):
    out, err = say(monkeypatch, capsys, "3?\n\n4?\n", runs[0], "--system", "s", "--lines")
    assert out.splitlines()[0] == answer(runs[0], "3?", "s") == "yes"
    assert len(out.splitlines()) == 2
    assert err == ""


def test_a_pipe_is_one_message(runs, monkeypatch, capsys):
    out, _ = say(monkeypatch, capsys, "/reset\n\n4?\n", runs[0])
    assert out == answer(runs[0], "/reset\n\n4?") + "\n"


def test_two_runs_on_one_base_are_told_apart_and_hold_it_once(runs, monkeypatch, capsys):
    pair = dialogue.load_dialogues([lineage.source(run) for run in runs[:2]])
    assert pair[0].model is pair[1].model
    for message in ("3?", "What?", "Hello"):
        said = [s.reply(message, SETTINGS, lambda t: None, pytest.fail) for s in pair]
        assert said == [answer(run, message) for run in runs[:2]]
        for s in pair:
            s.history = []
    out, _ = say(monkeypatch, capsys, "3?\n", *runs[:2])
    assert out.splitlines() == [f"# {runs[0]}", answer(runs[0], "3?"), f"# {runs[1]}", answer(runs[1], "3?")]


def test_a_run_beside_its_base(runs):
    pair = dialogue.load_dialogues([lineage.source("embedded:tiny"), lineage.source(runs[0])])
    assert pair[0].model is pair[1].model
    said = [s.reply("3?", SETTINGS, lambda t: None, pytest.fail) for s in pair]
    assert said == [answer("embedded:tiny", "3?"), answer(runs[0], "3?")]
    assert said[0] != said[1]


def test_runs_of_other_quantization_get_a_base_each(runs, monkeypatch, capsys):
    pair = dialogue.load_dialogues([lineage.source(runs[0]), lineage.source(runs[2])])
    assert pair[0].model is not pair[1].model
    out, _ = say(monkeypatch, capsys, "3?\n", runs[2], "--system", "s")
    assert out.strip() == answer(runs[2], "3?", "s") == "yes"
    assert {m.weight.quant_state.quant_type for m in pair[1].model.modules() if hasattr(m, "quant_type")} <= {"nf4"}
    assert any(type(m).__name__ == "Linear4bit" for m in pair[1].model.modules())


def test_each_turn_sees_those_before_in_the_template(runs, monkeypatch):
    (voice,) = dialogue.load_dialogues([lineage.source(runs[0])])
    voice.set_system_prompt("s")
    first = voice.reply("3?", SETTINGS, lambda t: None, pytest.fail)
    voice.history.append({"role": "user", "content": "4?"})
    assert voice.tokenizer.decode(voice._tokens(voice.history)) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n3?<|im_end|>\n"
        f"<|im_start|>assistant\n{first}<|im_end|>\n<|im_start|>user\n4?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_stream_is_the_answer_in_parts(runs):
    (voice,) = dialogue.load_dialogues([lineage.source("embedded:tiny")])
    parts = []
    whole = voice.reply("Hi", dialogue.Settings(24, temperature=1.0, seed=3), parts.append, pytest.fail)
    assert "".join(parts) == whole
    voice.history = []
    again = voice.reply("Hi", dialogue.Settings(24, temperature=1.0, seed=3), parts.append, pytest.fail)
    assert again == whole, "a seed gives the same answer"
    voice.history = []
    assert voice.reply("Hi", dialogue.Settings(24, temperature=1.0, seed=4), parts.append, pytest.fail) != whole


def test_commands(runs, monkeypatch, capsys):
    out, err = say(monkeypatch, capsys, "/system s\n3?\n/reset\n3?\n/nope\n/help\n/exit\n3?\n", runs[0], "--lines")
    assert out.splitlines() == ["yes", "yes"], "the same after a reset, and nothing after /exit"
    assert "system prompt set" in err
    assert "/nope: no such command" in err
    assert "/system TEXT" in err


def test_ctrl_c_stops_the_answer_and_not_the_chat(runs):
    (voice,) = dialogue.load_dialogues([lineage.source("embedded:tiny")])
    terminal = chat.Terminal(interactive=True, headings=False)
    printed = []

    def impatient(text):
        if text:
            printed.append(text)
            if len("".join(printed)) > 3 and "stopped" not in printed:
                printed.append("stopped")
                raise KeyboardInterrupt

    terminal.emit = impatient
    chat.answer_message("Hi", [voice], dialogue.Settings(400, temperature=1.0, seed=1), terminal)
    assert 3 < len(voice.history[-1]["content"]) < 300
    chat.answer_message("And?", [voice], SETTINGS, terminal)
    assert [turn["role"] for turn in voice.history] == ["user", "assistant"] * 2
    terminal.interactive = False
    printed.clear()
    with pytest.raises(KeyboardInterrupt):
        chat.answer_message("Hi", [voice], dialogue.Settings(400, temperature=1.0, seed=1), terminal)


def test_at_the_prompt_ctrl_c_goes_on_and_ctrl_d_ends(monkeypatch, capsys):
    script = iter([" Hi ", "", KeyboardInterrupt(), "there", EOFError()])

    def typed(prompt):
        event = next(script)
        if isinstance(event, BaseException):
            raise event
        return event

    monkeypatch.setattr("builtins.input", typed)
    assert list(chat.Terminal(interactive=True, headings=False).lines()) == ["Hi", "there"]
    assert "Ctrl-D or /exit ends" in capsys.readouterr().out


def test_a_full_context_forgets_the_oldest_turns_and_says_so(runs):
    (voice,) = dialogue.load_dialogues([lineage.source("embedded:tiny")])
    notices = []
    for i in range(3):
        voice.history += [{"role": "user", "content": f"{i}" * 660}, {"role": "assistant", "content": "a"}]
    voice.reply("Hi", SETTINGS, lambda t: None, notices.append)
    assert notices == ["embedded:tiny: the context of 2048 tokens is full; the oldest turn is forgotten"]
    kept = list(voice.history)
    assert [turn["content"][:1] for turn in kept[:-1]] == ["1", "a", "2", "a", "H"]
    with pytest.raises(PosttrainError, match=r"takes 3\d\d\d tokens, and the context of embedded:tiny is 2048"):
        voice.reply("x" * 3000, SETTINGS, lambda t: None, notices.append)
    assert voice.history == kept, "a message that fits nowhere costs nothing"


def test_a_base_model_continues_text_and_says_so(monkeypatch, capsys):
    shutil.copytree(tiny.tiny_model(), "base")
    Path("base/chat_template.jinja").unlink()
    _, err = say(monkeypatch, capsys, "abc\n", "./base")
    assert err == "./base has no chat template: it continues your text\n"
    (voice,) = dialogue.load_dialogues([lineage.source("./base")])
    voice.history = [{"role": "user", "content": "abc"}]
    assert voice.tokenizer.decode(voice._tokens(voice.history)) == "abc"
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n"))
    assert chat.main(["./base", "--system", "s"]) == 1
    assert "no chat template, and so no system prompt" in capsys.readouterr().err


def test_a_merged_run_answers_as_the_run(runs, monkeypatch, capsys):
    from posttrain.models.merge import merge

    merge(lineage.source(runs[0]), Path("merged"))
    assert say(monkeypatch, capsys, "3?\n", "./merged")[0] == say(monkeypatch, capsys, "3?\n", runs[0])[0]


def test_a_run_that_is_not_there_is_looked_for_among_its_neighbours(runs, capsys):
    one, folder = Path(runs[0]), Path(runs[0]).parent
    assert chat.main([f"{one}x"]) == 1
    assert capsys.readouterr().err == f"RUN={one}x: no such run or folder; did you mean {one}?\n"
    assert chat.main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"RUN={folder}: a folder of runs; name one, such as {folder}/")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("./nowhere",), "RUN=./nowhere: no such run or folder"),
        (("outputs/nowhere",), "RUN=outputs/nowhere: no such run or folder; as a hub id: not in the local cache"),
        (("a", "--seed", "-1"), "--seed=-1: expected at least 0 and at most 4294967295"),
        ((__file__,), f"RUN={__file__}: is a file; give the folder of a run or of a model"),
        (("embedded:nope",), "RUN=embedded:nope: choose from embedded:smollm2, embedded:tiny"),
        (
            ("a", "b", "c", "--top-p", "2", "--temperature", "-1"),
            "RUN: one or two, got 3\n--temperature=-1.0: expected",
        ),
    ],
)
def test_bad_input_is_said_in_a_line(args, message, capsys):
    assert chat.main(list(args)) == 1
    assert capsys.readouterr().err.startswith(message)


def test_an_unfinished_run_and_a_reward_model_do_not_chat(runs, capsys):
    shutil.copytree(runs[0], "run")
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(record | {"status": "running"}))
    assert chat.main(["run"]) == 1
    assert "this run is not finished" in capsys.readouterr().err
    Path("run/run.json").write_text(json.dumps(record))
    config = Path("run/model/adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "SEQ_CLS"}))
    assert chat.main(["run"]) == 1
    assert capsys.readouterr().err == "RUN=run: a reward model gives scores and does not answer\n"
