"""Rewards that verify, against values worked by hand; reasoning-gym's tasks as data and reward."""

import copy
import json
import re
from typing import Any

import hypothesis
import pytest
from datasets import Dataset
from hypothesis import strategies as st

from posttrain import rewards
from posttrain.config.schema import DataConfig, RewardConfig
from posttrain.data.embedded import gym as tasks
from posttrain.data.loading import load
from posttrain.errors import PosttrainError
from posttrain.jobs import preflight
from posttrain.rewards import gym, verify
from posttrain.rewards.sandbox.assertions import canonical, split_comparisons
from tests.helpers.runs import compose


def test_math_equal():
    pairs = [
        ("The answer is $\\frac{1}{2}$.", "0.5", 1.0),
        ("so x = 0.5", "\\frac{1}{2}", 1.0),
        ("\\boxed{(x+1)^2}", "$x^2 + 2x + 1$", 1.0),
        ("it is 1,234", "1234", 1.0),
        ("they sold 72.", "48 / 2 = 24, and 48 + 24 = 72\n#### 72", 1.0),
        ("first 72, then 73", "#### 72", 0.0),
        ("no idea", "7", 0.0),
        ("7", None, None),
    ]
    completions, answers, expected = zip(*pairs, strict=True)
    assert verify.math_equal(completions, answer=answers) == list(expected)


SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 1}}}


def test_json_schema(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    completions = [
        '{"n": 1}',
        '{"n": 0}',
        '{"n": "1"}',
        "{}",
        'Here: {"n": 1}',
        "[" * 10**5,
        [{"content": ' {"n": 2}\n'}],
    ]
    expected = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert verify.json_schema(completions, schema="s.json") == expected
    own = [json.dumps(SCHEMA), '{"type": "string"}', None]
    assert verify.json_schema(['{"n": 1}', '"a"', '"a"'], column="shape", shape=own) == [1.0, 1.0, None]
    with pytest.raises(PosttrainError, match=r"^reward: the column 'shape': not JSON"):
        verify.json_schema(["1"], column="shape", shape=["none"])
    assert verify.json_schema(["1.5", "NaN", "-Infinity"], column="shape", shape=['{"type": "number"}'] * 3) == [
        1,
        0,
        0,
    ]
    inside = json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}})
    assert verify.json_schema(['"a"', "1"], column="shape", shape=[inside] * 2) == [1.0, 0.0]


def test_json_schema_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args: pytest.fail("a document is fetched"))
    for ref in ("http://127.0.0.1:9/s.json", "file:///etc/passwd", "#/nowhere"):
        (tmp_path / "s.json").write_text(json.dumps({"$ref": ref}))
        assert verify.check("json_schema", {"schema": str(tmp_path / "s.json")}, "reward.a") == [
            f"reward.a.args.schema={tmp_path}/s.json: JSON schema: $ref={ref.lstrip('#')} leads to nothing within it, "
            "and other documents are not fetched"
        ]
        verify._schema_file.cache_clear()
        verify._validator.cache_clear()
    inner = json.dumps({"properties": {"a": {"$ref": "http://127.0.0.1:9/"}}})
    with pytest.raises(PosttrainError, match="leads to nothing within it"):
        verify.json_schema(['{"a": 1}'], column="shape", shape=[inner])


CODE = "```python\ndef double(x):\n    return x + 2\n```\n"


def test_unit_tests():
    tests = [
        ["assert double(2) == 4", "assert double(3) == 6", "assert double(0) == 2", "assert"],
        ["assert double(2) == 4"],
        [],
    ]
    completions = [f"First:\n```\nx\n```\nor\n{CODE}that is it", "def double(x): exit()", CODE]
    assert verify.unit_tests(completions, execute=True, tests=tests) == [0.5, 0.0, None]
    assert verify.unit_tests([CODE, CODE], execute=True, every=True, tests=[tests[0], tests[0][:1]]) == [0.0, 1.0]


def test_unit_tests_as_humaneval_has_them():
    test = "def check(candidate):\n    assert candidate(2) == 4\n"
    assert verify.unit_tests([CODE], execute=True, entry_point="entry", tests=[test], entry=["double"]) == [1.0]
    assert verify.unit_tests([CODE], execute=True, entry_point="entry", tests=[test], entry=["triple"]) == [0.0]


FORGED = {
    "equals everything": "class Same:\n    __eq__ = lambda self, other: True\n    tolist = __iter__ = None\n"
    "double = lambda x: Same()",
    "an int that does": "class Same(int):\n    __eq__ = lambda self, other: True\n    __repr__ = lambda self: '4'\n"
    "double = lambda x: Same(5)",
    "writes the result": "import os\nfor channel in range(3, 64):\n    try:\n"
    "        os.write(channel, b'{\"value\": VALUE}')\n    except OSError: pass\nos._exit(0)",
    "takes the notes over": "def double(x):\n    globals()['passed'] = lambda: []\n"
    "    globals()['__posttrain']['noted'] = NOTES = ['True', '1', '[]']\n    return 5",
}


def test_code_cannot_forge_what_it_is_compared_with():
    check = "def check(candidate):\n    assert candidate(2) == 4, 'of two'\n    assert 6 == candidate(3)\n"
    for code in FORGED.values():
        for value in ("true", "[]", "[true, true]", '["5", "5"]'):
            said = code.replace("VALUE", value)
            assert verify.unit_tests([said], execute=True, tests=[["assert double(2) == 4"]]) == [0.0]
            if "VALUE" not in code:
                break
        assert verify.unit_tests([code], execute=True, entry_point="e", tests=[check], e=["double"]) == [0.0]
    right = "import collections\ndef double(x): return x * 2\ndef count(x): return collections.Counter(x)"
    tests = [
        "import math\nassert double(2) == math.floor(4.5) and True\nassert double(.5) == 1",
        check + "check(double)",
    ]
    tests += [
        "xs = [1]\nassert double(xs) == [1, 1]\nxs.append(2)\nassert xs == [1, 2]",
        "assert count('aab') == {'b': 1, 'a': 2}",
    ]
    assert verify.unit_tests([right], execute=True, every=True, tests=[tests]) == [1.0]
    assert verify.unit_tests(
        [right], execute=True, tests=[["assert double((1,)) == [1, 1]", "assert double(2) == 5"]]
    ) == [0.0]


def test_which_assertions_are_taken_apart():
    test = "assert f(1) == (1, 'a')\nassert f(2) == g(2)\nassert f(3) is None\n"
    test += "if x:\n    assert f(4) == 4\nassert -1 == f(5)"
    source, expected = split_comparisons(test)
    assert expected == ["(1,'a')", "-1"]
    shown = source.split("\n", 2)[2].splitlines()
    assert shown[0] == "assert __posttrain['note'](f(1))"
    assert shown[1:5] == ["assert f(2) == g(2)", "assert f(3) is None", "if x:", "    assert f(4) == 4"]
    assert shown[5] == "assert __posttrain['note'](f(5))"
    check = "def check(f):\n    assert f(1) == 1\n    for x in y:\n        assert f(x) == 2\n    {}\n"
    assert split_comparisons(check.format("assert f(3) == 3") + "check(f)")[1] == ["1", "3"]
    for unclear in (check.format("0"), check.format("return") + "check(f)", check.format("0") + "check(f)\ncheck(g)"):
        assert split_comparisons(unclear)[1] == [], "how often it runs is not known"
    assert split_comparisons("assert f(")[0].endswith("assert f("), "fails as it is"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from((0.0, -0.0, 1.0, 0.5, 1j, 2 + 0j, "", "1", b"1", b"")),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.integers(0, 1) | st.sampled_from("ab") | st.booleans(), inner, max_size=2)
        | st.sets(st.integers(0, 2) | st.sampled_from((1.0, "a")), max_size=2)
    ),
    max_leaves=4,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(PLAIN, PLAIN)
def test_canonical_texts_are_equal_where_values_are(one: Any, other: Any):
    assert (canonical(one) == canonical(other)) == (one == other)
    assert canonical(one) == canonical(copy.deepcopy(one))


def test_an_endless_loop_is_a_failed_test():
    assert verify.unit_tests(["while True: pass"], execute=True, seconds=1, tests=["assert True"]) == [0.0]


def test_code_of():
    assert verify.code_of("a = 1") == "a = 1"
    assert verify.code_of("```py\na\n```\n```\nb\n```") == "b\n"
    assert verify.code_of("```python\ncut off") == "cut off"
    assert verify.code_of("```python\r\na\r\n```") == "a\r\n"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "unit_tests",
            "reward.r: runs code of completions in a limited subprocess; allow it with reward.r.args.execute=true",
        ),
        ("json_schema", "reward.r.args: give schema=FILE.json, or column=NAME"),
        ("json_schema:none.json", "reward.r.args.schema=none.json: cannot be read (No such file or directory)"),
        (
            "json_schema:bad.json",
            "reward.r.args.schema=bad.json: no JSON schema: ['properties']['n']['type']: 'int' is not",
        ),
        ("json_schema:text.json", "reward.r.args.schema=text.json: not JSON"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(tmp_path, entry: str, expected: str):
    (tmp_path / "bad.json").write_text('{"properties": {"n": {"type": "int"}}}')
    (tmp_path / "text.json").write_text("schema")
    function, _, schema = entry.partition(":")
    config = RewardConfig(function=f"posttrain.rewards.verify.{function}", args={"schema": schema} if schema else {})
    errors = rewards.check({"r": config}, "reward")
    assert len(errors) == 1
    assert errors[0].startswith(expected)


def test_unit_tests_do_not_run_unless_asked():
    with pytest.raises(PosttrainError, match="execute=true"):
        verify.unit_tests(["x"], tests=["assert True"])
    run = compose("+recipe=grpo_smollm2", "reward=unit_tests")[0]
    with pytest.raises(PosttrainError, match=r"reward\.unit_tests\.args\.execute=true"):
        preflight.check(run)


ARGS = {"size": 40, "max_terms": 3, "max_digits": 1, "system": "Answer with the number alone."}


def test_reasoning_gym_as_data():
    data = load(DataConfig(path="reasoning_gym:chain_sum", args=ARGS, eval_split="test", max_eval_rows=10), "grpo")
    assert (len(data.train), len(data.eval)) == (40, 10)
    row = data.train[0]
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert row["prompt"][0]["content"] == ARGS["system"]
    expression = json.loads(row["metadata"])["expression"]
    assert expression in row["prompt"][1]["content"]
    assert int(row["answer"]) == eval(expression)
    questions = [{row["prompt"][1]["content"] for row in rows} for rows in (data.train, data.eval)]
    assert not questions[0] & questions[1], "held-out tasks are none of those trained on"
    again = load(DataConfig(path="reasoning_gym:chain_sum", args=ARGS, eval_split="test"), "grpo")
    assert again.source["fingerprint"] == data.source["fingerprint"]
    other = load(DataConfig(path="reasoning_gym:chain_sum", args={**ARGS, "seed": 1}, eval_split="test"), "grpo")
    assert other.source["fingerprint"] != data.source["fingerprint"]


def test_reasoning_gym_as_reward():
    """chain_sum's scorer: 1 for the answer, the answer's share of the characters where it is inside."""
    row = tasks.load("reasoning_gym:chain_sum", ARGS)["test"][3]
    answer, task = row["answer"], row["task"]
    said = [answer, f"<answer>0</answer> no, <answer> {answer} </answer>", f"it is {answer}", "", f"{answer}.0 or so"]
    share = len(answer) / len(f"it is {answer}")
    assert gym.reasoning_gym(said[:4], task=[task] * 4) == [1.0, 1.0, pytest.approx(share), 0.0]
    assert gym.reasoning_gym([f"1 + 1 is {answer}.", "none", answer], extract="number", task=[task, task, None]) == [
        1.0,
        0.0,
        None,
    ]


def test_reasoning_gym_scores_by_the_tasks_own_rules():
    """Of a task with many right answers, another one than the stored is right, too."""
    row = tasks.load("reasoning_gym:countdown", {"size": 2})["train"][0]
    entry = json.loads(row["metadata"])
    scores = gym.reasoning_gym([row["answer"], f"({row['answer']})", str(entry["target"])], task=[row["task"]] * 3)
    assert scores[0] == scores[1] == 1.0
    assert scores[2] < 1.0, "the numbers have to be used"


def test_reasoning_gym_runs_no_code_of_completions(tmp_path):
    """Its scorers evaluate answers as Python."""
    attacks = [
        "open('escaped', 'w')",
        "1 + open('escaped', 'w').fileno()",
        "sin(open('escaped', 'w'))",
        "[open('escaped', 'w')]",
    ]
    attacks += [
        "sympify(\"open('escaped', 'w')\")",
        "sin(\"open('escaped', 'w')\")",
        "5! + len([open('escaped', 'w')])",
    ]
    endless = [
        "9**9**9",
        "(9**32)**32**32",
        "9**(32*32*32*32*32)",
        "9**(x - x + 10**9)",
        "[0] * 10**12",
        "exp(9**9**9)",
    ]
    for name in sorted(gym.LISTS | gym.FORMULAS):
        row = tasks.load(f"reasoning_gym:{name}", {"size": 2})["train"][0]
        nothing, *scores = gym.reasoning_gym(
            ["", *attacks, *endless], task=[row["task"]] * (1 + len(attacks + endless))
        )
        assert set(scores) == {nothing}
        assert nothing <= 0.01
        assert gym.reasoning_gym([row["answer"]], task=[row["task"]]) == [1.0], name
    assert not (tmp_path / "escaped").exists()
    row = tasks.load("reasoning_gym:polynomial_multiplication", {"size": 2})["train"][0]
    assert gym.reasoning_gym([f"({row['answer']})*1**2"], task=[row["task"]]) == [1.0]
    task = json.dumps(
        {**json.loads(row["task"]), "name": "spiral_matrix", "options": {"size": 1, "seed": 0}, "index": 0}
    )
    answer = tasks.dataset("spiral_matrix", '{"seed": 0, "size": 1}', "")[0]["answer"]
    assert gym.reasoning_gym([f"[{answer.replace(' ', ', ')}]"], task=[task]) == [0.1], "a list scores as it did"


def test_scorers_that_evaluate_are_all_known():
    """A new version of reasoning-gym may have others."""
    import inspect

    from reasoning_gym.factory import DATASETS

    evaluate = re.compile(r"\b(eval|exec|parse_expr|sympify)\(")
    scorers = {name: inspect.getsource(kind[0].score_answer) for name, kind in DATASETS.items()}
    found = {name for name, source in scorers.items() if evaluate.search(source)}
    own = {"propositional_logic", "number_sorting"}  # a parser of its own; the stored answer alone
    assert found - own == gym.LISTS | gym.FORMULAS


@pytest.mark.parametrize(
    ("path", "args", "expected"),
    [
        (
            "chain_sun",
            {},
            "data.path=reasoning_gym:chain_sun: reasoning-gym has no task chain_sun; did you mean chain_sum?",
        ),
        ("chain_sum", {"max_term": 3}, "data.args.max_term: not an option of chain_sum; did you mean max_terms?"),
        ("chain_sum", {"min_digits": 9}, "chain_sum says: max_digits must be >= min_digits"),
        ("chain_sum", {"max_terms": 2, "max_digits": 1, "size": 3000}, "every question drawn to be held out"),
    ],
)
def test_bad_tasks(path: str, args: dict, expected: str):
    with pytest.raises(PosttrainError) as error:
        tasks.load(f"reasoning_gym:{path}", args)
    assert expected in str(error.value)


@pytest.mark.parametrize("tests", ['["assert f() == 1"]', "['assert f() == 1']"])
def test_a_list_of_tests_in_a_cell_is_no_test_that_always_passes(tests: str):
    assert verify.unit_tests(["def f(): return 2"], tests=[tests], execute=True, walls="reduced") == [0.0]


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([{"input": 1}], "objects, such as {'input': 1}; a reference is text"),
        ('[{"input": 1}]', "{'input': 1}; a test is Python code, as text, with an assert"),
        ('{"inputs": ["1"], "outputs": ["2"]}', '\'{"inputs": '),
        ("# nothing", "'# nothing'; a test"),
        (5, "'5'; a test"),
    ],
)
def test_a_test_that_any_code_would_pass_is_refused(tests, said: str):
    run, _ = compose("trainer=grpo", "model=tiny", "reward=unit_tests", "data.path=x.jsonl")
    with pytest.raises(PosttrainError) as error:
        rewards.check_columns(run, Dataset.from_list([{"prompt": "q", "tests": tests}]), None)
    assert str(error.value).startswith(f"reward.unit_tests: the column 'tests' holds {said}")
    with pytest.raises(PosttrainError, match=r"^reward: the column 'tests' holds"):
        verify.unit_tests(["def f(): return 2"], tests=[tests], execute=True, walls="reduced")


def test_blank_tests_are_none():
    assert verify.unit_tests(["x = 1"] * 2, tests=["", [" \n"]], execute=True, walls="reduced") == [None, None]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object"}, "k.args.schema={'type': 'object'}: expected a file, FILE.json"),
        (b'{"title": "caf\xe9"}', "k.args.schema=odd.json: cannot be read ("),
        (b'{"type": "object", "type": "string"}', "k.args.schema=odd.json: no JSON schema: has the key 'type' twice"),
        (b'{"$ref": "#"}', "k.args.schema=odd.json: no JSON schema: a $ref leads back to itself"),
    ],
)
def test_odd_schemas_are_refused(tmp_path, schema: Any, message: str):
    if isinstance(schema, bytes):
        verify._schema_file.cache_clear()
        (tmp_path / "odd.json").write_bytes(schema)
        schema = "odd.json"
    (said,) = verify.check("json_schema", {"schema": schema}, "k")
    assert said.startswith(message)


def test_schemas_as_objects_and_numbers_of_hundreds_of_digits():
    assert verify.json_schema(["{}", "1"], column="shape", shape=[{"type": "object"}] * 2) == [1.0, 0.0]
    assert verify.json_schema(["1" * 400], column="shape", shape=['{"multipleOf": 0.5}']) == [0.0]


def test_a_task_of_other_data_is_named():
    with pytest.raises(PosttrainError, match=r"^reward reasoning_gym: a row's task is 'summarize'; it scores rows of"):
        gym.reasoning_gym(["a"], task=["summarize"])


HUMANEVAL = "def check(candidate):\n    assert candidate(1) == 2\n"
IDLE = {
    HUMANEVAL: "`check`; set args.entry_point to the column that names the function to test in each row, or call it",
    "def test_f():\n    assert f(1) == 2": "`test_f`; call it in the test",
    "import pytest\n@pytest.mark.slow()\ndef test_f():\n    assert f(1) == 2": "`test_f`; call it in the test",
    "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(1), 2)\n\n"
    "if __name__ == '__main__':\n    unittest.main()": "`T`; call it in the test",
}


@pytest.mark.parametrize("test", IDLE)
def test_a_test_that_nothing_calls_is_refused(test: str):
    with pytest.raises(PosttrainError, match=f"nothing calls {re.escape(IDLE[test])}"):
        verify.unit_tests(["f"], tests=[[test]], execute=True, walls="reduced")
    with pytest.raises(PosttrainError, match="nothing calls"):
        verify.check_column("unit_tests", {"tests": [[test]], "e": [None]}, "tests", "e")


@pytest.mark.parametrize(
    "test",
    [
        f"{HUMANEVAL}check(f)",
        f"def main():\n    check(f)\n{HUMANEVAL}main()",
        "if True:\n    assert f(1) == 2",
        "for n in (1,):\n    assert f(n) == n + 1",
        "try:\n    assert f(1) == 2\nfinally:\n    pass",
        "class T:\n    assert f(1) == 2",
        "import contextlib\nwith contextlib.suppress(KeyError):\n    assert f(1) == 2",
        "while True:\n    assert f(1) == 2\n    break",
        "def test_f():\n    assert f(1) == 2\n\nfor name, test in list(globals().items()):\n"
        "    if name.startswith('test_'):\n        test()",
    ],
)
def test_a_test_that_runs_is_taken(test: str):
    codes = ["def f(n): return n + 1", "def f(n): return n"]
    assert verify.unit_tests(codes, tests=[[test]] * 2, execute=True, walls="reduced") == [1.0, 0.0]


def test_a_row_without_an_entry_point_may_call_its_check_itself():
    given = {"tests": [[HUMANEVAL], [HUMANEVAL + "check(f)"]], "e": ["f", None]}
    verify.check_column("unit_tests", given, "tests", "e")
    code = "def f(n): return n + 1"
    assert verify.unit_tests([code] * 2, execute=True, walls="reduced", entry_point="e", **given) == [1.0, 1.0]


def test_a_check_that_checks_nothing_is_no_test():
    with pytest.raises(PosttrainError, match="a test is Python code, as text, with an assert"):
        verify.unit_tests(["f"], tests=[["def check(f):\n    pass\ncheck(f)"]], execute=True, walls="reduced")


def test_numbers_and_sets_of_the_standard_library_equal_literals():
    code = "from decimal import Decimal\nfrom fractions import Fraction\n"
    values = {
        "Decimal('0.5')": "0.5",
        "Decimal('1e30')": str(10**30),
        "Fraction(4, 2)": "2",
        "{1: 2}.keys()": "{1}",
        "{1: 2}.items()": "{(1, 2)}",
    }
    tests = [f"assert {value} == {literal}" for value, literal in values.items()]
    assert verify.unit_tests([code], tests=[tests], execute=True, walls="reduced") == [1.0]
    wrong = ["assert Decimal('0.1') == 0.1", "assert Fraction(1, 3) == 0.3", "assert {1: 2}.values() == {2}"]
    assert verify.unit_tests([code], tests=[wrong], execute=True, walls="reduced") == [0.0]


def test_the_last_of_several_boxes_counts():
    said = r"First \boxed{1}. Then, corrected, \boxed{2}."
    assert verify.math_equal([said] * 3, answer=["2", "1", "1, 2"]) == [1.0, 0.0, 1.0]


def test_an_answer_that_a_scorer_fails_on_is_wrong(capsys):
    row = json.dumps({"name": "prime_factorization", "options": {"size": 2, "seed": 0}, "index": 0})
    gym._FAILED.clear()
    assert gym.reasoning_gym(["The factors are 2 and 3"] * 2, task=[row] * 2) == [0.0, 0.0]
    assert capsys.readouterr().out.count("the scorer of prime_factorization fails on 'The factors") == 1


def test_scorers_get_nothing_that_does_not_end_soon():
    endless = ["'%3000000000d' % 1", "[a for a in 'aa' for b in 'aa']", "{a: a for a in 'aa'}", "'a'.__class__"]
    assert not any(map(gym._literal, endless))
    assert all(map(gym._literal, ("['a', 'b']", "1 2 3", "_ Q\nQ _", "ABC", "[[0, 1]]", "")))
    assert not gym._formula("exp(exp(exp(20)))")
    assert not gym._formula("sin(1 + exp(2))")
    assert gym._formula("exp(2*x) + 3*sin(x)**2")
