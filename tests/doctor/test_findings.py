"""The doctor's checks: each finds the fault that was planted, with its number, and is silent on clean data."""

import json
import random
import re

import numpy as np
import pytest

from posttrain.config import options
from posttrain.config.schema import DoctorConfig, Run
from posttrain.doctor import duplicates, language, noise, pairs, privacy, prompts
from posttrain.doctor.finding import excerpt, severity, share
from posttrain.doctor.patterns import kinds, masked
from posttrain.doctor.texts import Texts, of
from posttrain.probe.intervals import wilson

SETTINGS = DoctorConfig()
WORDS = re.findall(
    r"\w+",
    """
    time people way water words write would like long make thing look number sound most know place year live
    back give only little round man came show every good name great through sentence help low line differ turn
    cause much mean before move right boy old same tell set three want air well also play small end home read
    hand port large spell add even land here must big high such follow act why ask men change went light kind
    off need house picture try again animal point mother world near build self earth father head stand own
    page should country found answer school grow study still learn plant cover food sun four between state
    keep eye never last let thought city tree cross farm hard start might story saw far sea draw left late run
    while press close night real life few north open seem together next white children begin got walk example
    ease paper group always music those both mark often letter until mile river car feet care second book
    """,
)


def sentence(draw: random.Random, about: int = 20) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(about - 5, about + 5)))


def clean(count: int = 200, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of English words without a fault; longer answers are chosen as often as shorter ones."""
    draw = random.Random(seed)
    return [{"prompt": sentence(draw), "chosen": sentence(draw), "rejected": sentence(draw)} for _ in range(count)]


def texts(rows: list[dict], split: str = "train") -> Texts:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    labels = columns.pop("label", None)
    return Texts(split, [""] * len(rows), columns.pop("prompt"), columns, labels)


def kto(good: int, bad: int, **args: float) -> tuple[Texts, Run]:
    draw = random.Random(0)
    rows = [{"prompt": sentence(draw), "completion": sentence(draw), "label": i < good} for i in range(good + bad)]
    run = Run()
    run.trainer.kind, run.trainer.args = "kto", args
    return texts(rows), run


def test_clean_pairs_leave_every_check_silent():
    rows, other = texts(clean()), texts(clean(50, seed=1), "held-out")
    findings = [pairs.check_empty(rows, SETTINGS), pairs.check_identical(rows, SETTINGS)]
    findings += [pairs.check_contradictory(rows, SETTINGS), pairs.check_length(rows, SETTINGS, "dpo")]
    findings += duplicates.check_rows(rows, SETTINGS) + duplicates.check_prompts(rows, other, SETTINGS)
    findings += [language.check_languages(rows, SETTINGS), language.check_encoding(rows, SETTINGS)]
    findings += privacy.check([rows, other], SETTINGS)
    assert {one.name: one.severity for one in findings} == {one.name: "info" for one in findings}
    assert len(findings) == 13
    assert all(one.consequence == one.fix == "" for one in findings)


def test_empty_identical_and_contradictory_rows_are_counted():
    rows = clean()
    rows[3]["chosen"] = " \n"
    rows[5]["rejected"] = rows[5]["chosen"] + " "
    rows[7] = {**rows[6], "chosen": rows[6]["rejected"], "rejected": rows[6]["chosen"].upper()}
    found = texts(rows)
    empty = pairs.check_empty(found, SETTINGS)
    assert (empty.severity, empty.numbers["rows"], empty.examples[0].row) == ("warning", 1, 3)
    identical = pairs.check_identical(found, SETTINGS)
    assert (identical.severity, identical.numbers["rows"], identical.examples[0].row) == ("warning", 1, 5)
    opposite = pairs.check_contradictory(found, SETTINGS)
    assert (opposite.severity, opposite.numbers["rows"], opposite.examples[0].row) == ("warning", 1, 7)
    assert "against row 6" in opposite.examples[0].text


def test_one_completion_with_both_labels_contradicts():
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "B", "label": False}]
    assert pairs.check_contradictory(texts(rows), SETTINGS).numbers["rows"] == 1
    assert pairs.check_contradictory(texts([rows[0], rows[0]]), SETTINGS).numbers["rows"] == 0
    assert duplicates.check_rows(texts(rows), SETTINGS)[0].numbers["rows"] == 0


def test_severity_is_by_the_share_of_rows():
    assert [severity(n, 10_000, SETTINGS) for n in (0, 9, 10, 499, 500)] == ["info"] * 2 + ["warning"] * 2 + ["error"]
    assert severity(10_000, 10_000, SETTINGS, worst="warning") == "warning"


def test_length_bias_by_hand():
    # 8 of 10 decided pairs prefer the longer; of 12 pairs 8 + 2 ties / 2 = 9 would be right.
    rows = [{"prompt": "p", "chosen": "xx", "rejected": "x"}] * 8 + [
        {"prompt": "p", "chosen": "x", "rejected": "xx"}
    ] * 2
    rows += [{"prompt": "p", "chosen": "x", "rejected": "y"}] * 2
    found = pairs.check_length(texts(rows), SETTINGS, "reward")
    assert found.numbers["longer_chosen"] == 0.8
    assert found.numbers["accuracy"] == 9 / 12
    assert found.severity == "info"  # twelve pairs prove nothing
    many = pairs.check_length(texts(rows * 50), SETTINGS, "reward")
    assert (many.severity, many.numbers["accuracy"]) == ("warning", 0.75)
    shorter = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows * 50]
    assert "prefers the shorter one scores 75.0%" in pairs.check_length(texts(shorter), SETTINGS, "dpo").says


def test_length_bias_of_single_labels_by_hand():
    # Desirable 3 and 2 characters long, undesirable 1 and 2: three of four comparisons are longer, one is a tie.
    rows = [("abc", True), ("ab", True), ("a", False), ("xy", False)]
    found = texts([{"prompt": "p", "completion": text, "label": label} for text, label in rows])
    numbers = pairs.check_length(found, SETTINGS, "kto").numbers
    assert (numbers["longer_chosen"], numbers["accuracy"], numbers["ties"]) == (1.0, 0.875, 0.5)
    many = texts([{"prompt": "p", "completion": text, "label": label} for text, label in rows * 50])
    assert pairs.check_length(many, SETTINGS, "kto").severity == "warning"
    assert pairs.check_length(kto(100, 0)[0], SETTINGS, "kto").severity == "info"


def test_wilson_interval_against_newcombes_table():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_exact_and_near_duplicates_and_overlap():
    rows, held_out = clean(), clean(50, seed=1)
    rows[10] = {key: f" {value.upper()}" for key, value in rows[4].items()}
    rows[11] = {**rows[5], "rejected": rows[5]["rejected"] + " indeed"}
    held_out[2]["prompt"] = rows[20]["prompt"]
    long = " ".join(sentence(random.Random(i)) for i in range(3))
    rows[21]["prompt"], held_out[3]["prompt"] = long, long + " please"
    exact, near = duplicates.check_rows(texts(rows), SETTINGS)
    assert (exact.numbers["rows"], exact.examples[0].row) == (1, 10)
    assert exact.examples[0].text.startswith("= row 4:")
    assert (near.numbers["rows"], near.examples[0].row) == (1, 11)
    both, nearly, diversity = duplicates.check_prompts(texts(rows), texts(held_out, "held-out"), SETTINGS)
    assert (both.severity, both.numbers["rows"], both.examples[0].row) == ("warning", 1, 2)
    assert (nearly.severity, nearly.numbers["rows"], nearly.examples[0].row) == ("warning", 1, 3)
    assert diversity.numbers["prompts"] == 198


def test_two_labelled_answers_to_one_prompt_are_no_near_duplicates():
    long = " ".join(sentence(random.Random(i)) for i in range(5))
    rows = [{"prompt": long, "completion": text, "label": text == "yes"} for text in ("yes", "no")]
    assert duplicates.check_rows(texts(rows), SETTINGS)[1].numbers["rows"] == 0
    rows[1]["prompt"] += " now"
    assert duplicates.check_rows(texts(rows), SETTINGS)[1].numbers["rows"] == 1


def test_prompts_of_one_kind_are_a_cluster():
    rows = clean()
    shared = " ".join(sentence(random.Random(i)) for i in range(4))
    for i in range(60):
        rows[i]["prompt"] = f"{shared} {WORDS[i]}"
    found = duplicates.check_prompts(texts(rows), None, SETTINGS)[-1]
    assert (found.severity, found.numbers["largest_cluster"]) == ("warning", 0.3)


def test_minhash_finds_what_the_exact_similarity_says():
    draw = random.Random(0)
    long = [sentence(draw, 100) for _ in range(60)]
    changed = [" ".join(words[: 5 * (i % 12)]) + " x " + text for i, text in enumerate(long) for words in [WORDS]]
    found = {tuple(pair) for pair in duplicates.near_pairs(duplicates.signatures([*long, *changed]), 0.8).tolist()}
    for i, (one, other) in enumerate(zip(long, changed, strict=True)):
        a, b = set(duplicates.shingles(one)), set(duplicates.shingles(other))
        similarity = len(a & b) / len(a | b)
        if abs(similarity - 0.8) > 0.1:
            assert ((i, i + 60) in found) == (similarity > 0.8), similarity
    assert all(j - i == 60 for i, j in found)


def test_scripts_without_spaces_are_cut_into_characters():
    assert duplicates.shingles("一二三四五六七八九十" * 2)[:2] == ["一 二 三", "二 三 四"]


def test_languages_and_encodings():
    rows = clean()
    german = (
        "Die Hauptstadt des Landes liegt an einem breiten Fluss, und viele Menschen fahren dort mit dem Rad zur Arbeit."
    )
    for i in range(20):
        rows[i] = dict.fromkeys(("prompt", "chosen", "rejected"), german)
    found = language.check_languages(texts(rows), SETTINGS)
    assert (found.severity, found.numbers["other_share"] * found.numbers["rows"]) == ("warning", 20)
    assert found.examples[0].text.startswith("de: Die Hauptstadt")
    rows = clean()
    rows[1]["chosen"] = "itâ€™s a trap"
    rows[2]["chosen"] = "a hole \ufffd here"
    rows[3]["chosen"] = "a bell \x07 rings"
    rows[4]["chosen"] = "“naïve” café – Ünïcode, 日本語 and 👩‍🚀 are fine"
    found = language.check_encoding(texts(rows), SETTINGS)
    assert [example.row for example in found.examples] == [1, 2, 3]
    assert [found.numbers[kind] for kind in language.KINDS] == [1, 1, 1]
    assert found.examples[0].text.endswith("→ it's a trap")
    assert "\x07" not in found.examples[2].text


PLANTED = {
    "AWS access key": "AKIAIOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + "a1B2" * 9,
    "OpenAI or Anthropic key": "sk-proj-" + "aB3d" * 8,
    "Hugging Face token": "hf_" + "aBcD" * 8,
    "Google API key": "AIza" + "Sy0a-" * 7,
    "Slack token": "xoxb-1234567890-abcdef",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "e-mail address": "jane.doe@mail.example.org",
    "phone number": "+49 30 901820-11"[:13],
    "IBAN": "GB82 WEST 1234 5698 7654 32",
    "card number": "4111 1111 1111 1111",
    "IP address": "93.184.216.34",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_shape_is_found_and_never_shown(kind):
    text = f"before {PLANTED[kind]} after"
    assert kinds(text)[kind] == 1
    assert PLANTED[kind] not in masked(text)
    assert PLANTED[kind][6:] not in masked(text)
    rows = clean(20)
    rows[8]["rejected"] = text
    secrets, personal = privacy.check([texts(rows)], SETTINGS)
    found = secrets if kind in secrets.numbers else personal
    assert found.severity == ("error" if found is secrets else "warning")
    assert (found.numbers["rows"], found.numbers[kind], found.examples[0].row) == (1, 1, 8)
    assert PLANTED[kind][6:] not in found.examples[0].text + excerpt(text)


@pytest.mark.parametrize(
    "text",
    [
        *("from 1998 to 2003", "version 1.2.3.4", "192.168.0.1", "pi is 3.14159265358979323846", "4111 1111 1111 1112"),
        *("sk-learn-is-a-fine-library-of-models", "GB82 WEST 1234 5698 7654 33", "user @ host", "9–88 cm", "2,500,000"),
        *("chapter 2.1.3.99 of the book", "0000 0000 0000 0000", "a_b_c and __init__"),
    ],
)
def test_what_only_resembles_a_shape_is_left_alone(text):
    assert not kinds(text)
    assert masked(text) == text


def test_a_hostile_row_costs_no_more_than_its_length():
    import time

    began = time.process_time()
    for piece in ("a@", "1-", "+1 (", "eyJaaaaaaaa.", "-----BEGIN ", "AB12 ", "1.1.", "sk-_", "a.b-"):
        kinds(piece * 20_000)
    assert time.process_time() - began < 20


def flipped(rate: float, count: int = 900) -> tuple[Texts, set[int]]:
    """Pairs where kind words are preferred, and the rows in which that was turned round."""
    draw = random.Random(0)
    rows = clean(count)
    for row in rows:
        row["chosen"] += " " + " ".join(draw.choices(["please", "thanks", "gladly"], k=4))
        row["rejected"] += " " + " ".join(draw.choices(["stupid", "boring", "whatever"], k=4))
    turned = set(draw.sample(range(count), int(rate * count)))
    for i in turned:
        rows[i]["chosen"], rows[i]["rejected"] = rows[i]["rejected"], rows[i]["chosen"]
    return texts(rows), turned


def dpo(**args: object) -> Run:
    run = Run()
    run.trainer.kind, run.trainer.args = "dpo", args
    return run


def test_flipped_labels_are_counted_and_listed():
    rows, turned = flipped(0.12)
    doubt = noise.estimate(rows, SETTINGS)
    found = noise.check(rows, doubt, dpo())
    assert found.severity == "warning"
    assert found.numbers["low"] < 0.12 < found.numbers["high"]
    assert found.numbers["rate"] == pytest.approx(0.12, abs=0.04)
    listed = {row for row, _ in doubt.doubtful(len(turned))}
    assert len(listed & turned) > 0.95 * len(turned)
    assert re.search(r"trainer\.args\.loss_type=\[robust\] trainer\.args\.label_smoothing=0\.\d\d ", found.fix)


def test_right_labels_are_not_called_noise():
    rows, _ = flipped(0.0)
    found = noise.check(rows, noise.estimate(rows, SETTINGS), dpo())
    assert (found.severity, found.numbers["rate"]) == ("info", 0.0)
    random_pairs = texts(clean(300))
    blind = noise.estimate(random_pairs, SETTINGS)
    assert noise.check(random_pairs, blind, dpo()).severity == "info"
    assert noise.estimate(texts(clean(50)), SETTINGS) is None


def test_noise_of_single_labels():
    rows, turned = flipped(0.1, 600)
    draw = random.Random(1)
    good = [draw.random() < 0.5 for _ in range(600)]
    # The kind answer is called good, but for the rows that were turned round.
    completions = [rows.answers["chosen" if g != (i in turned) else "rejected"][i] for i, g in enumerate(good)]
    kind = [("please" in c or "thanks" in c or "gladly" in c) for c in completions]
    labels = [k != (i in turned) for i, k in enumerate(kind)]
    single = Texts("train", rows.system, rows.prompts, {"completion": completions}, labels)
    found = noise.check(single, noise.estimate(single, SETTINGS), kto(1, 1)[1])
    assert found.severity == "warning"
    assert found.numbers["rate"] == pytest.approx(0.1, abs=0.05)
    assert "kto has no loss for flipped labels" in found.fix


def test_the_least_disagreement_is_read_where_the_model_is_surest():
    sure, next_sure, unsure = [0.99] * 90 + [0.01] * 10, [0.8] * 88 + [0.2] * 12, [0.55] * 60 + [0.45] * 40
    doubt = noise.Doubt(np.arange(300), np.array(sure + next_sure + unsure))
    assert doubt.disagreement() == (10, 100, True)
    falling = noise.Doubt(np.arange(300), np.array(sure + [0.8] * 70 + [0.2] * 30 + unsure))
    assert falling.disagreement() == (10, 100, False)
    assert doubt.doubtful(2) == [(90, 0.01), (91, 0.01)]


def test_the_fix_keeps_what_else_the_recipe_trains_on():
    both = noise.fix(dpo(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]), 0.12)
    assert "trainer.args.loss_type=[robust,sft] trainer.args.label_smoothing=0.12 (robust DPO)" in both
    assert "loss_weights=null" in noise.fix(dpo(loss_type=["apo_zero", "sft"], loss_weights=[1.0, 1.0]), 0.12)
    assert "label_smoothing=0.45" in noise.fix(dpo(loss_type="robust"), 0.49)


def test_the_fixes_are_options_that_trl_takes():
    assert options.check("trl.DPOConfig", {"loss_type": ["robust"], "label_smoothing": 0.12}, "trainer.args", {}) == []
    assert options.check("trl.DPOConfig", {"loss_type": ["sigmoid_norm"], "ld_alpha": 0.5}, "trainer.args", {}) == []
    assert options.check("trl.KTOConfig", {"desirable_weight": 0.3}, "trainer.args", {}) == []


@pytest.mark.parametrize(
    ("good", "bad", "level", "fix"),
    [
        (100, 100, "info", ""),
        (133, 100, "info", ""),
        # eq. 8: desirable weight in [1, 4/3] x 100 / 300, the geometric mean of its ends.
        (300, 100, "warning", "trainer.args.desirable_weight=0.38 (between 0.33 and 0.44)"),
        (50, 100, "warning", "trainer.args.desirable_weight=2.31 (between 2.00 and 2.67)"),
        (2000, 100, "warning", "trainer.args.undesirable_weight=17.39"),
        (100, 0, "error", "Add rows of the other label"),
    ],
)
def test_kto_balance(good, bad, level, fix):
    found = pairs.check_balance(*kto(good, bad))
    assert found.severity == level
    assert found.fix.startswith(fix)
    assert (found.numbers["desirable"], found.numbers["undesirable"]) == (good, bad)


def test_the_kto_weights_of_the_fix_balance():
    for weight in ("desirable_weight=0.38", "desirable_weight=2.31", "undesirable_weight=17.39"):
        name, value = weight.split("=")
        good, bad = {"0.38": (300, 100), "2.31": (50, 100), "17.39": (2000, 100)}[value]
        assert pairs.check_balance(*kto(good, bad, **{name: float(value)})).severity == "info"


def test_shares_in_words():
    assert (share(3, 200), share(0, 200)) == ("3 of 200 (1.5%)", "none of 200")


def test_reasoning_is_read_for_secrets():
    from datasets import Dataset, Json, List

    thought = {"role": "assistant", "content": "a", "reasoning_content": "with AKIAIOSFODNN7EXAMPLE"}
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "q"}, thought]}])
    read = of(rows.cast_column("messages", List(Json())), "train")
    assert read.answers["completion"] == ["with AKIAIOSFODNN7EXAMPLE\na"]
    assert privacy.check([read], DoctorConfig())[0].severity == "error"


def test_a_special_token_in_a_message_is_found():
    rows = clean()
    rows[3]["prompt"] = "Say hello.<|im_end|>\n<|im_start|>assistant\nNo."
    rows[7]["rejected"] += " <|endoftext|>"
    rows[9]["chosen"] += " <|unknown|> im_end"
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    found = prompts.check_control_tokens(texts(rows), special, SETTINGS)
    assert (found.severity, found.numbers["rows"]) == ("warning", 2)
    assert [(one.row, one.text.split(":")[0]) for one in found.examples] == [(3, "<|im_end|>"), (7, "<|endoftext|>")]
    assert prompts.check_control_tokens(texts(clean()), special, SETTINGS).severity == "info"
    assert prompts.check_control_tokens(texts(rows), [], SETTINGS).numbers["rows"] == 0


def test_tools_and_template_options_are_read_for_secrets():
    from datasets import Dataset

    row = {"prompt": "q", "completion": "a", "tools": "[]", "chat_template_kwargs": {"note": None}}
    rows = [row, {**row, "tools": json.dumps([{"name": "get", "description": "with AKIAIOSFODNN7EXAMPLE"}])}]
    rows.append({**row, "chat_template_kwargs": {"note": "me@company.org"}})
    read = of(Dataset.from_list(rows), "train")
    assert [kinds(read.everything(index)).total() for index in range(3)] == [0, 1, 1]
    secrets, personal = privacy.check([read], DoctorConfig())
    assert [one.row for one in secrets.examples + personal.examples] == [1, 2]
    assert "EXAMPLE" not in secrets.examples[0].text


def test_why_noise_cannot_be_estimated():
    rows = texts([{**row, "prompt": "one"} for row in clean(500)])
    assert noise.check(rows, noise.estimate(rows, SETTINGS), Run()).says == (
        "label noise cannot be estimated: it takes at least 100 usable rows and 10 prompts"
    )
    labelled, run = kto(495, 5)
    assert "10 prompts, 10 of each label" in noise.check(labelled, noise.estimate(labelled, SETTINGS), run).says
