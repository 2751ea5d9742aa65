"""OpenAI's graders: scores worked by hand, what is wrong said with its place, and their use as rewards."""

import json

import pytest
from datasets import List, Value

from posttrain import rewards
from posttrain.config.schema import RewardConfig
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.rewards import graders
from posttrain.rewards.graders import formula, model_grader, schema, similarity, template
from tests.helpers.endpoint import serve
from tests.helpers.runs import compose, rows

CHECK = {
    "type": "string_check",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


def grade(grader, completions, args=None, **columns):
    return graders.Grader("g", schema.of_json(grader), args or {})(completions, **columns)


@pytest.fixture
def write(tmp_path):
    def put(grader, name="g.json"):
        (tmp_path / name).write_text(grader if isinstance(grader, str) else json.dumps(grader))
        return name

    return put


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("eq", [1, 0, 0, 0]), ("ne", [0, 1, 1, 1]), ("like", [1, 0, 1, 0]), ("ilike", [1, 1, 1, 0])],
)
def test_string_check(operation: str, expected: list[float]):
    completions = ["Paris", "PARIS", [{"role": "assistant", "content": "in Paris."}], "Rome"]
    assert grade({**CHECK, "operation": operation}, completions, answer=["Paris"] * 4) == expected


# "the cat sat on the mat" against "the cat is on the mat"
SIMILARITIES = {
    # 22 and 21 characters, the longest common subsequence has 20: 40 / 43
    "fuzzy_match": 40 / 43,
    # precisions 5/6, 3/5, 1/4 and, of 0/3 by exponential smoothing, 1/6
    "bleu": (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25,
    # 5 + 3 + 1 + 0 n-grams in common, of 6 + 5 + 4 + 3
    "gleu": 9 / 18,
    # P = R = 5/6; two chunks of five matches: a penalty of 0.5 (2/5)^3
    "meteor": 5 / 6 * (1 - 0.5 * 0.4**3),
    "rouge_1": 5 / 6,
    "rouge_2": 3 / 5,
    "rouge_3": 1 / 4,
    "rouge_4": 0,
    "rouge_5": 0,
    "rouge_l": 5 / 6,
}


@pytest.mark.parametrize(("metric", "expected"), SIMILARITIES.items())
def test_text_similarity(metric: str, expected: float):
    grader = {"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    texts, answers = ["the cat sat on the mat", "x", ""], ["the cat is on the mat", "y", "y"]
    scores = grade({**grader, "evaluation_metric": metric}, texts, answer=answers)
    assert scores == [pytest.approx(expected), 0, 0]


def test_similarities_are_the_libraries_own():
    from nltk.translate.gleu_score import sentence_gleu
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu

    text, reference = "A dog, running fast, barks at 2 cats.", "Dogs run; a dog barks at two cats."
    assert similarity.similarity("bleu", text, reference) == pytest.approx(sentence_bleu(text, [reference]).score / 100)
    words = [
        [w.strip() for w in t.replace(",", " ,").replace(".", " .").replace(";", " ;").split()]
        for t in (text, reference)
    ]
    assert similarity.similarity("gleu", text, reference) == pytest.approx(sentence_gleu([words[1]], words[0]))
    theirs = RougeScorer(["rouge2", "rougeL"]).score(reference, text)
    assert similarity.similarity("rouge_2", text, reference) == theirs["rouge2"].fmeasure
    assert similarity.similarity("rouge_l", text, reference) == theirs["rougeL"].fmeasure
    assert similarity.similarity("meteor", "running", "runs") > 0, "stems match"
    assert similarity.similarity("bleu", "a b c d e", "a b c d e") == 1


def test_meteor_with_synonyms(write, monkeypatch):
    """By hand: of three words two match, in two chunks; with synonyms three in one."""
    from types import SimpleNamespace as Fake

    texts = ("a quick car", "a fast car")
    metric = {"type": "text_similarity", "evaluation_metric": "meteor"}
    file = write({**metric, "input": "{{sample.output_text}}", "reference": "{{item.answer}}"})
    entry = RewardConfig(grader=file, args={"wordnet": True})
    similarity._synonyms.cache_clear()
    monkeypatch.setattr("nltk.data.path", [])
    (error,) = graders.check(entry, "reward.g")
    assert error.endswith("evaluation_metric=meteor: needs NLTK's WordNet; python -m nltk.downloader wordnet")
    quick = Fake(lemmas=lambda: [Fake(name=lambda: "fast"), Fake(name=lambda: "quick")])
    fake = Fake(synsets=lambda word: [quick] if word == "quick" else [])
    monkeypatch.setattr(similarity, "_synonyms", lambda: fake)
    assert graders.check(entry, "reward.g") == []
    score = graders.open_grader("g", entry)
    assert score([texts[0]], answer=[texts[1]]) == pytest.approx([1 - 0.5 * (1 / 3) ** 3])
    assert similarity.similarity("meteor", *texts) == pytest.approx(2 / 3 * (1 - 0.5 * (2 / 2) ** 3))
    entry.args["wordnet"] = "yes"
    assert graders.check(entry, "reward.g") == ["reward.g.args.wordnet=yes: expected true or false"]


def test_cosine_by_an_encoder_here_and_by_hand():
    from posttrain.rewards.graders import embed
    from posttrain.rewards.graders.embed import cosines

    vectors = {"a": [3.0, 4.0], "b": [4.0, 3.0], "c": [-3.0, -4.0], "": [0.0, 0.0]}
    asked = []

    def by_hand(texts):
        asked.extend(texts)
        return [vectors[text] for text in texts]

    pairs = [("a", "b"), ("a", "a"), ("a", "c"), ("a", "")]
    assert cosines(by_hand, pairs) == pytest.approx([24 / 25, 1, -1, 0])
    assert asked == ["a", "b", "c", ""], "each text once"
    from posttrain.data.embedded import tiny

    grader = {
        "type": "text_similarity",
        "input": "{{sample.output_text}}",
        "reference": "x y",
        "evaluation_metric": "cosine",
    }
    folder = str(tiny.tiny_model())
    same, other, empty = grade(grader, ["x y", "something else", ""], {"embeddings": folder})
    assert same == pytest.approx(1)
    assert -1 <= other < 0.999
    assert -1 <= empty < 0.999
    # Padding beside a longer text changes nothing.
    embedded = embed.open_embedder(folder)
    assert embedded(["x y"])[0] == pytest.approx(embedded(["x y", "a much longer text"])[0], abs=1e-5)


def test_cosine_by_an_endpoint(monkeypatch):
    from posttrain.rewards.graders.embed import open_embedder

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    vectors = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    with serve(lambda body: vectors) as server:
        embed = open_embedder("m", f"{server.url}/")
        assert embed(["a", ""]) == [[1.0], [2.0]], "in the order of the texts"
        assert open_embedder("m", f"{server.url}/chat/completions")(["a", "b"]) == [[1.0], [2.0]]
        assert server.requests[0] == {"model": "m", "input": ["a", " "]}
        assert server.keys[0] == "Bearer k"
        server.statuses = [400]
        with pytest.raises(PosttrainError, match=r"400 from m: refused Bearer \*\*\*"):
            embed(["a", "b"])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again_for_embeddings(status: int):
    grader = {
        "type": "text_similarity",
        "input": "{{sample.output_text}}",
        "reference": "x",
        "evaluation_metric": "cosine",
    }
    vectors = [{"index": 0, "embedding": [1.0, 0.0]}, {"index": 1, "embedding": [1.0, 0.0]}]
    with serve(lambda body: vectors) as server:
        server.statuses = [status, status]
        args = {"embeddings": "m", "endpoint": server.url, "retries": 2, "backoff": 0.01, "batch_size": 1}
        assert grade(grader, ["y"], args) == [pytest.approx(1)]
        assert len(server.requests) == 3
        server.statuses = [status, status]
        with pytest.raises(PosttrainError, match=f"{status} from m"):
            grade(grader, ["y"], {**args, "retries": 1})
    with pytest.raises(PosttrainError, match=r"cannot be reached.*start the server"):
        grade(grader, ["y"], args)


def test_templates():
    row = {
        "item": {"answer": {"steps": ["a", {"b c": 2}]}, "n": 3, "none": None, "list": [1, "é"]},
        "sample": template.sample('{"x": {"y": [5]}}'),
    }

    def render(text):
        return template.parse(text).render(row)

    assert render("{{item.answer.steps[0]}} {{ item.answer.steps[1]['b c'] }} {{item.n}}!") == "a 2 3!"
    assert render("{{ sample.output_json.x.y.0 }}/{{ sample.choices[0].message.content }}") == '5/{"x": {"y": [5]}}'
    assert render("{{ item.list }}") == '[1, "é"]'
    assert render("no {braces}") == "no {braces}"
    for text, of in (("{{item.none}}", "item"), ("{{item.n.x}}", "item"), ("{{sample.output_json.z}}", "sample")):
        with pytest.raises(template.MissingValue) as absent:
            render(text)
        assert absent.value.of == of
    for text in (
        "{{ answer }}",
        "{{ item }}",
        "{{ item.a",
        "{{ item..a }}",
        "{{ sample.output_tools }}",
        "{{ item[0] }}",
    ):
        with pytest.raises(ValueError, match=r"\{\{"):
            template.parse(text)


def test_what_a_row_lacks(capsys):
    """A row's own gap leaves it out; a completion's gap is its fault."""
    grader = {**CHECK, "input": "{{ sample.output_json.result }}"}
    completions = ['{"result": 4}', '{"other": 4}', "four", '{"result": 4}']
    assert grade(grader, completions, answer=["4", "4", "4", None]) == [1, 0, 0, None]
    assert capsys.readouterr().out.splitlines() == [
        "Grader g: string_check: {{ sample.output_json.result }}: has no value; scored 0, as every further one will be",
        "Grader g: string_check: {{ item.answer }}: has no value; left out, as every further one will be",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5 * a + 0.5 * b", 2.5),
        ("a ^ 2 - -b", 7.0),
        ("2 ^ 3 ^ 0", 2.0),
        ("min(a, b, 1) + max(a, b) / abs(-2)", 2.5),
        ("min(a) +\n  max(b)", 5.0),
        ("floor(2.7) + ceil(2.1) + sqrt(4)", 7.0),
        ("log(exp(a))", 2.0),
    ],
)
def test_formula(text: str, expected: float):
    assert formula.evaluate(formula.parse(text, ["a", "b"]), {"a": 2, "b": 3}) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "a.b",
        "a if b else 1",
        "[a]",
        "a = 1",
        "lambda: 1",
        "c + 1",
        "sqr(a)",
        "abs(a, b)",
        "min()",
        "a % b",
        "True",
        "'a'",
        "",
        "a; b",
        "(" * 500 + "a" + ")" * 500,
    ],
)
def test_formula_is_no_code(text: str):
    with pytest.raises(ValueError):  # noqa: PT011 - each its own words
        formula.parse(text, ["a", "b"])


def test_formula_without_a_number():
    powers = ("(a - 1) ^ 0.5", "max((a - 1) ^ 0.5, 1)", "9 ^ 9 ^ 9 ^ 9", "floor(9) ^ floor(9) ^ floor(9) ^ floor(9)")
    for text in ("1 / a", "log(a)", "exp(9 ^ 9)", *powers):
        with pytest.raises((ArithmeticError, ValueError)):
            formula.evaluate(formula.parse(text, ["a"]), {"a": 0})


def multi(**changes):
    close = {**CHECK, "type": "text_similarity", "evaluation_metric": "fuzzy_match"}
    del close["operation"]
    return {
        "type": "multi",
        "graders": {"exact": CHECK, "close": close},
        "calculate_output": "exact + 0.5 * close",
        **changes,
    }


def test_multi():
    assert grade(multi(), ["ab", "abcd"], answer=["ab", "ab"]) == [1.5, pytest.approx(0.5 * 4 / 6)]
    assert grade(multi(), ["ab"], answer=[None]) == [None]
    assert grade(multi(calculate_output="1 / exact"), ["ab", "x"], answer=["ab", "ab"]) == [1.0, None]
    assert grade(multi(graders={**CHECK, "name": "one"}, calculate_output="2 * one"), ["a"], answer=["a"]) == [2]


def test_python(capsys):
    source = """def grade(sample, item):
    if sample["output_text"] == "bad":
        raise ValueError("no score")
    if sample["output_text"] == "text":
        return "1"
    return len(sample["output_text"]) / item["most"] + (sample["output_json"] or {}).get("bonus", 0)
"""
    scores = grade({"type": "python", "source": source}, ["ab", '{"bonus": 1}', "bad", "text"], most=[4] * 4)
    assert scores == [0.5, 4.0, 0.0, 0.0]
    assert "Grader g: python: ValueError: no score (line 3); scored 0" in capsys.readouterr().out


SCORE = {
    "type": "score_model",
    "model": "judge",
    "input": [
        {"role": "developer", "content": "Rate."},
        {"role": "user", "content": {"type": "input_text", "text": "{{item.answer}}|{{sample.output_text}}"}},
    ],
    "range": [1, 5],
    "sampling_params": {"temperature": 0.5, "max_completions_tokens": 9},
}


def test_score_model_by_an_endpoint(capsys):
    with serve(
        lambda body: {"good": '{"steps": [], "result": 9}', "bad": "2.5"}.get(body["messages"][1]["content"][2:], "?")
    ) as served:
        args = {"endpoint": served.url, "cache": False}
        assert grade(SCORE, ["good", "bad", "odd"], args, answer=["a"] * 3) == [5.0, 2.5, None]
        body = served.requests[0]
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.5, 9)
        assert body["messages"][0]["role"] == "system"
        assert body["messages"][0]["content"].startswith("Rate.\n\n")
        assert "from 1 (worst) to 5 (best)" in body["messages"][0]["content"]
        assert grade(SCORE, ["good"], {**args, "model": "other"}, answer=["a"]) == [5.0]
        assert served.requests[-1]["model"] == "other"
    assert "no score in '?'; left out" in capsys.readouterr().out


def test_label_model_by_an_endpoint():
    grader = {**SCORE, "type": "label_model", "labels": ["good", "not good"], "passing_labels": ["good"]}
    del grader["range"]
    with serve(lambda body: body["messages"][1]["content"][2:]) as served:
        scores = grade(
            grader, ["Good.", "not good", "dunno"], {"endpoint": served.url, "cache": False}, answer=["a"] * 3
        )
    assert scores == [1.0, 0.0, None]


def test_answers_of_models():
    score, label = (
        schema.of_json(SCORE),
        schema.LabelModel(
            **{
                **{k: SCORE[k] for k in ("input", "model")},
                "type": "label_model",
                "labels": ["yes", "no"],
                "passing_labels": [],
            }
        ),
    )
    said = {'{"result": 2} then {"result": 3}': 3, "4": 4, '```json\n{"result": 1.5}\n```': 1.5, "nan": None, "{": None}
    assert {text: model_grader.score(score, text) for text in said} == said
    names = {
        "yes": "yes",
        ' "No." ': "no",
        '{"label": "yes"}': "yes",
        "It is a yes": "yes",
        "yes or no": None,
        "now": None,
    }
    assert {text: model_grader.label(label, text) for text in names} == names


# What is wrong, and what is said of it after `reward.g.grader=g.json: `.
WRONG = [
    ({**CHECK, "operation": "equal"}, 'operation="equal": did you mean eq? choose from eq, ne, like, ilike'),
    (
        multi(graders={"match": {**CHECK, "operation": "equal"}}, calculate_output="match"),
        'graders.match.operation="equal": did you mean eq?',
    ),
    (
        multi(graders={"a": {**CHECK, "refrence": "x"}}, calculate_output="a"),
        "graders.a.refrence: unknown here; did you mean reference?",
    ),
    (multi(graders={"a": multi()}, calculate_output="a"), 'graders.a.type="multi": multi graders cannot be nested'),
    (multi(calculate_output="exakt"), 'calculate_output="exakt": exakt: did you mean exact?'),
    (multi(calculate_output="exact +"), 'calculate_output="exact +": is no formula'),
    (
        multi(calculate_output="-" * 300 + "exact"),
        f'calculate_output="{"-" * 100}": more than 200 operations within one',
    ),
    ({"type": "python", "source": "def grade(a, b): return " + "-" * 9000 + "1"}, "source: nested too deeply"),
    ({**SCORE, "model": ""}, 'model="": '),
    ({**CHECK, "input": "{{ output_text }}"}, "input: {{ output_text }}: begins with neither item nor sample"),
    ({"type": "strings_check"}, 'type="strings_check": did you mean string_check?'),
    ({"input": "x"}, "type: choose from string_check"),
    ([], "expected an object with a type"),
    ({k: v for k, v in CHECK.items() if k != "input"}, "input: required, and not there"),
    ({**CHECK, "input": 3}, "input=3: expected a valid string"),
    ({"type": "python", "source": "def grade(sample, item:\n"}, "source: line 1: "),
    ({"type": "python", "source": "def grad(): pass"}, "source: defines no function grade"),
    (
        {"type": "python", "source": "x = 1\ndef grade(item): return 1"},
        "source: line 2: grade is called with two values",
    ),
    ({"type": "python", "source": "def grade(a, b, c): return 1"}, "source: line 1: grade is called with two values"),
    (
        {"type": "python", "source": "def grade(*, sample, item): pass"},
        "source: line 1: grade is called with two values",
    ),
    ({"type": "python", "source": "x = '\0'"}, "source: line 1: "),
    (
        {**SCORE, "sampling_params": {"max_tokens": 9}},
        "sampling_params.max_tokens: unknown here; did you mean max_completions_tokens? choose from seed, temperature",
    ),
    ({**SCORE, "sampling_params": {"temperature": -1}}, "sampling_params.temperature=-1: expected greater than or"),
    ({**SCORE, "sampling_params": {"top_p": 2}}, "sampling_params.top_p=2: expected less than or equal to 1"),
    (
        {**SCORE, "input": [{"role": "user", "content": "x", "nme": 1}]},
        "input[0].nme: unknown here; choose from role, content",
    ),
    (
        {"type": "label_model", "model": "m", "input": SCORE["input"], "labels": ["Yes", "yes"], "passing_labels": []},
        'labels=["Yes", "yes"]: a label is blank, or differs from another in its case alone',
    ),
    (
        {"type": "python", "source": "def grade(s, i): return 1"},
        "python: runs code in a limited subprocess; allow it with reward.g.args.execute=true",
    ),
    (
        {"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"},
        "evaluation_metric=cosine: set the model whose embeddings are compared, reward.g.args.embeddings=MODEL",
    ),
    (SCORE, "model=judge: set where it answers, reward.g.args.endpoint=http://HOST/v1, or a model"),
    (
        {**SCORE, "sampling_params": {"reasoning_effort": "low"}},
        "sampling_params.reasoning_effort: a model that is loaded here does not take it",
    ),
    ({**SCORE, "range": [1, 0]}, "range=[1.0, 0.0]: expected two numbers, the lower one first"),
    ({**SCORE, "input": [{"role": "usr", "content": "x"}]}, 'input[0].role="usr": did you mean user?'),
    ({**SCORE, "type": "label_model", "labels": ["a"], "passing_labels": ["b"], "range": None}, "range: unknown here"),
    (
        {**CHECK, "type": "text_similarity", "evaluation_metric": "rouge", "operation": None},
        'evaluation_metric="rouge": did you mean rouge_',
    ),
    ("{\n 'a': 1}", "line 2, column 2: not JSON"),
]


@pytest.mark.parametrize(("grader", "expected"), WRONG, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_what_is_wrong_is_said_with_its_place(write, grader, expected: str):
    args = {"model": "embedded:tiny"} if "reasoning" in expected else {}
    errors = rewards.check({"g": RewardConfig(grader=write(grader), args=args)}, "reward")
    assert errors[0].startswith(f"reward.g.grader=g.json: {expected}")


def test_it_is_said_before_anything_loads(write):
    run = compose("+recipe=grpo_smollm2", "~reward", f"+reward.g.grader={write({**CHECK, 'operation': 'equal'})}")[0]
    with pytest.raises(PosttrainError, match=r'^reward\.g\.grader=g\.json: operation="equal": did you mean eq\?'):
        preflight.check(run)


def test_all_that_is_wrong_at_once(write):
    grader = multi(
        graders={"a": {**CHECK, "operation": "x"}, "b": {"type": "python", "source": "("}}, calculate_output="c"
    )
    errors = rewards.check({"g": RewardConfig(grader=write(grader), args={"exec": True})}, "reward")
    assert [e.split(": ")[1].split("=")[0] for e in errors[1:]] == [
        "graders.a.operation",
        "graders.b.source",
        "calculate_output",
    ]
    assert errors[0].startswith("reward.g.args.exec: a grader takes execute, walls, seconds")


def test_one_of_function_model_and_grader(write):
    for entry in (RewardConfig(), RewardConfig(grader=write(CHECK), model="acme/rm")):
        assert rewards.check({"g": entry}, "reward") == [
            "reward.g: give one of function=package.module.function, model=RUN_OR_HUB_ID or grader=FILE.json"
        ]
    assert rewards.check({"g": RewardConfig(grader="no.json")}, "reward") == ["reward.g.grader=no.json: no such file"]


@pytest.mark.parametrize("name", ["completions", "prompts", "completion_ids", "trainer_state"])
def test_a_column_with_the_name_of_what_a_reward_is_given(write, name: str):
    columns = {"prompt": Value("string"), "answer": Value("string"), name: Value("string")}
    for entry in (RewardConfig(grader=write(CHECK)), RewardConfig(function="posttrain.rewards.text.length")):
        (error,) = rewards.missing_columns({"g": entry}, "reward", columns)
        assert error.startswith(f"reward: the data has a column {name}, and rewards are given something else")
        assert error.endswith(f"'data.columns={{OTHER: {name}}}'")
    assert rewards.missing_columns({}, "reward", columns) == []


def test_columns_the_data_does_not_have(write):
    entry = {"g": RewardConfig(grader=write(multi()))}
    text = Value("string")
    assert rewards.missing_columns(entry, "reward", {"prompt": text, "answer": text}) == []
    assert rewards.missing_columns(entry, "reward", {"prompt": text, "answers": text})[0] == (
        "reward.g.grader=g.json: graders.exact.reference: reads item.answer, and the data has answers, prompt"
    )


def test_fields_of_columns_the_data_does_not_have(write):
    features = {"task": {"answer": Value("string"), "parts": List({"text": Value("string")})}}

    def said(path: str):
        entry = {"g": RewardConfig(grader=write({**CHECK, "reference": f"{{{{ item.{path} }}}}"}))}
        return [error.split("reads ")[1] for error in rewards.missing_columns(entry, "reward", features)]

    assert said("task.answer") == said("task.parts[0].text") == said("prompt[0].content") == []
    assert said("task.anwser") == ["item.task.anwser, and item.task has answer, parts"]
    assert said("task.parts[0].name") == ["item.task.parts[0].name, and item.task.parts.0 has text"]


def test_numbers_of_the_data_in_templates(capsys):
    """A column with 12 and 5.5 holds 12.0, and one of pandas has NaN for what is missing."""
    assert grade(CHECK, ["12", "5.5", "nan"], answer=[12.0, 5.5, float("nan")]) == [1, 1, None]
    assert "{{ item.answer }}: has no value; left out" in capsys.readouterr().out
    assert grade(CHECK, ["[1, 2.5]"], answer=[[1.0, 2.5]]) == [1]
    own = {**CHECK, "input": "{{ sample.output_json.a }}", "reference": "1.0"}
    assert grade(own, ['{"a": 1.0}', '{"a": 1}', '{"a": NaN}']) == [1, 0, 0], "a completion's are as it wrote them"


def test_null_is_what_is_not_set():
    params = {"seed": None, "temperature": None}
    for nulls in ({"sampling_params": None, "name": None}, {"sampling_params": params}):
        node = schema.of_json({**SCORE, **nulls, "range": None})
        assert (node.range, node.sampling_params) == ([0, 1], schema.Sampling())


def test_a_name_that_no_formula_can_hold(write):
    grader = multi(graders={"exact-match": CHECK}, calculate_output="exact-match")
    said = graders.check(RewardConfig(grader=write(grader)), "reward.g")
    assert said[1] == "reward.g.grader=g.json: graders.exact-match: a formula cannot name it; use letters, digits and _"


def test_sampling_options_of_a_reasoning_model():
    """It takes neither temperature nor max_tokens, which others get; `args.sampling` goes before both."""
    with serve(lambda body: "1") as served:
        args = {"endpoint": served.url, "cache": False}
        for params, more, expected in (
            ({}, {}, {"temperature": 0.0, "max_tokens": 512}),
            (
                {"reasoning_effort": "low", "max_completions_tokens": 9, "seed": 1},
                {},
                {"reasoning_effort": "low", "max_completion_tokens": 9, "seed": 1},
            ),
            ({}, {"sampling": {"max_tokens": None, "temperature": None, "top_p": 0.5}}, {"top_p": 0.5}),
        ):
            assert grade({**SCORE, "sampling_params": params}, ["a"], {**args, **more}, answer=["a"]) == [1]
            assert {k: v for k, v in served.requests[-1].items() if k not in ("model", "messages")} == expected


SHORT = (
    *("~reward", "trainer.args.max_steps=2", "trainer.args.max_completion_length=4", "trainer.args.eval_strategy=no"),
    *("trainer.args.eval_on_start=false", "peft=none"),
)


@pytest.mark.parametrize("recipe", ["grpo_smollm2", "rloo_smollm2", "ppo_smollm2"])
def test_training_with_a_grader(train, write, recipe: str):
    """The score of the training log is the grader's, and the run keeps a copy of the grader."""
    grader = {**CHECK, "operation": "ne", "reference": "{{ item.answers[0] }}"}
    options = ("probe=default", "probe.prompts=2", "probe.max_new_tokens=4")
    run = train(f"+recipe={recipe}", *SHORT, f"+reward.g.grader={write(grader)}", "+reward.g.weight=2", *options)
    logged = [row for row in rows(run.metrics) if "rewards/g/mean" in row]
    assert {row["rewards/g/mean"] for row in logged} == {1.0}  # a random model does not say yes
    assert logged[0]["reward"] == 2.0
    probed = [row["probe/rewards/g"] for row in rows(run.metrics) if "probe/rewards/g" in row]
    assert probed == [1.0, 1.0]
    assert json.loads((run.graders / "reward.g.json").read_text()) == grader


def test_an_endpoint_that_does_not_answer_is_said_before_weights_load(write):
    entry = RewardConfig(grader=write(SCORE), args={"endpoint": "http://127.0.0.1:9/v1", "retries": 0})
    assert rewards.check({"g": entry}, "reward") == []
    errors = rewards.check_reachable({"g": entry}, "reward")
    assert len(errors) == 1
    assert errors[0].startswith("reward.g.args: endpoint=http://127.0.0.1:9/v1: cannot be reached")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"endpoint": "http://127.0.0.1:9/v1"}, "reward.g.args: endpoint=http://127.0.0.1:9/v1: cannot be reached"),
        ({}, "reward.g.args: embeddings=./none: "),
    ],
)
def test_embeddings_that_will_not_come_are_said_before_weights_load(write, args, expected: str):
    grader = {"type": "text_similarity", "input": "a", "reference": "b", "evaluation_metric": "cosine"}
    entry = RewardConfig(grader=write(grader), args={"embeddings": "./none", **args})
    (error,) = rewards.check_reachable({"g": entry}, "reward")
    assert error.startswith(expected)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [({"temprature": 1}, "sampling.temprature: a local model does not take it"), ({"temperature": "hot"}, "sampling=")],
)
def test_sampling_of_a_local_model_is_checked(write, sampling, expected: str):
    args = {"model": "embedded:tiny", "sampling": sampling}
    (error,) = graders.check(RewardConfig(grader=write(SCORE), args=args), "reward.g")
    assert error.startswith(f"reward.g.args.{expected}")
    remote = {**args, "endpoint": "http://127.0.0.1:9/v1"}
    assert graders.check(RewardConfig(grader=write(SCORE), args=remote), "reward.g") == []


def test_another_grader_is_another_run(write):
    from posttrain.runs.identity import digest

    def of():
        return digest(compose("+recipe=grpo_smollm2", "~reward", "+reward.g.grader=g.json")[0])

    write(CHECK)
    first = of()
    write({**CHECK, "operation": "ne"})
    assert of() != first


def test_sample_with_a_grader(train, write):
    from datasets import load_dataset

    source = "def grade(sample, item): return len(sample['output_text']) / 100 + (item['answers'] == ['yes'])"
    overrides = ("+recipe=dpo_smollm2", "job=sample", "sample.n=2", "sample.prompts=2", "sample.max_new_tokens=4")
    run = train(
        *overrides,
        *("sample.unfinished=true", "sample.select=best", "+reward.g.args.execute=true"),
        f"+reward.g.grader={write({'type': 'python', 'source': source})}",
    )
    found = load_dataset("parquet", data_files=str(run.data / "train.parquet"), split="train").to_list()
    assert found
    for row in found:
        assert row["score"] == pytest.approx(len(row["completion"][0]["content"].strip()) / 100 + 1)


def test_evaluate_with_a_grader(train, write):
    grader = write({**CHECK, "operation": "ne", "reference": "{{ item.answers[0] }}"})
    options = ("~reward", f"+reward.g.grader={grader}", "probe=default", "probe.prompts=2", "probe.max_new_tokens=4")
    run = train("+recipe=grpo_smollm2", "job=evaluate", *options)
    assert run.record()["metrics"]["sampled/rewards/g"] == 1.0  # a random model does not say yes


def test_column_missing_from_the_data_of_a_run(train, write):
    with pytest.raises(
        PosttrainError, match=r"reward\.g\.grader=g\.json: reference: reads item\.answer, and the data has answers"
    ):
        train("+recipe=grpo_smollm2", *SHORT, f"+reward.g.grader={write(CHECK)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(CHECK)[:-1] + ', "reference": "b"}', "has the key 'reference' twice"),
        (json.dumps({**CHECK, "type": ["string_check"]}), 'type=["string_check"]: did you mean string_check?'),
        (json.dumps(CHECK)[:-1] + ', "pass_threshold": NaN}', "is not JSON: NaN is no number there"),
        (json.dumps({"type": "multi", "calculate_output": "g", "graders": {**CHECK, "name": ["g"]}}), "expected a val"),
    ],
)
def test_odd_json_of_a_grader_is_refused(write, text: str, message: str):
    assert message in graders.check(RewardConfig(grader=write(text)), "reward.g")[0]


def test_a_grader_saved_with_a_byte_order_mark(write):
    assert graders.check(RewardConfig(grader=write("\ufeff" + json.dumps(CHECK))), "reward.g") == []


def test_args_that_say_how_a_model_answers_are_checked(write):
    args = {
        "endpoint": "http://h:99999/v1",
        "concurrency": 0,
        "timeout": -1,
        "cache": "no",
        "model": 5,
        "batch_size": 1,
    }
    said = graders.check(RewardConfig(grader=write(SCORE), args=args), "reward.g")
    keys = [line.split(":")[0].removeprefix("reward.g.args.") for line in said]
    assert keys == ["endpoint=http", "concurrency=0", "timeout=-1", "cache=no", "model=5"]


def test_options_of_the_other_kind_of_model_are_not_read(write):
    entry = RewardConfig(grader=write(SCORE), args={"endpoint": "http://127.0.0.1:9/v1", "batch_size": 4})
    with pytest.raises(PosttrainError, match=r"^reward\.g\.args: endpoint=.*cannot be reached"):
        graders.check_reachable(entry, "reward.g")
    entry = RewardConfig(grader=write(SCORE), args={"model": "./none", "concurrency": 4})
    with pytest.raises(PosttrainError, match=r"^reward\.g\.args: model=\./none: no such run"):
        graders.check_reachable(entry, "reward.g")


@pytest.mark.parametrize("data", [[], [{"index": 0, "embedding": None}], [{"index": 0, "embedding": []}]])
def test_an_endpoint_without_an_embedding_for_each_text(data):
    from posttrain.rewards.graders import embed

    with (
        serve(lambda body: data) as server,
        pytest.raises(PosttrainError, match="answered something other than embeddings"),
    ):
        embed.open_embedder("m", server.url)(["a"])


def test_what_a_model_thinks_is_no_answer():
    node = {**{k: SCORE[k] for k in ("input", "model")}, "type": "label_model", "passing_labels": []}
    label = schema.LabelModel(**node, labels=["correct", "incorrect"])
    assert model_grader.label(label, "<think>maybe incorrect</think>\ncorrect") == "correct"
    assert model_grader.label(label, "maybe correct</think>\nincorrect.") == "incorrect"
    score = schema.of_json(SCORE)
    assert model_grader.score(score, '<think>{"result": 1}</think> {"result": "3"}') == 3
    assert model_grader.score(score, "<think>1</think>\n2") == 2
    assert model_grader.score(score, '{"result": "none"}') is None


@pytest.mark.parametrize("name", ["retries", "batch_size", "concurrency", "max_tokens"])
def test_only_max_tokens_may_be_null(name: str):
    from posttrain.rewards.judge_client import check_args

    said = [] if name == "max_tokens" else [f"k.{name}=None: expected a whole number of at least {int(name[0] != 'r')}"]
    assert check_args({name: None}, "k") == said
