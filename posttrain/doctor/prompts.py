"""Prompts repeated in answers, doubled BOS, control tokens in texts, and what the chat template leaves out."""

import re
from collections.abc import Mapping, Sequence

from posttrain.config.schema import DoctorConfig
from posttrain.doctor.finding import Example, Finding, excerpt, finding, plural, severity, share
from posttrain.doctor.lengths import Tokenized
from posttrain.doctor.texts import Texts

# A prompt shorter than this may begin an answer by chance.
SHORTEST = 4


def check_repeated(texts: Texts, settings: DoctorConfig) -> Finding:
    """Answers that begin with their prompt, so that the prompt is learnt, too."""
    found = sorted(
        {
            index
            for answers in texts.answers.values()
            for index, (prompt, answer) in enumerate(zip(texts.prompts, answers, strict=True))
            if len(prompt.strip()) >= SHORTEST and answer.lstrip().startswith(prompt.strip())
        }
    )
    return finding(
        "prompt.repeated",
        severity(len(found), len(texts), settings),
        f"answers of {share(len(found), len(texts))} rows begin with their prompt",
        {"rows": len(found), "share": len(found) / len(texts)},
        [Example(texts.split, index, excerpt(texts.row(index))) for index in found[: settings.examples]],
        "The model learns to repeat the question before it answers.",
        "Take the prompt off the answers.",
    )


def check_bos(tokenized: Tokenized, bos: int | None, texts: Texts, settings: DoctorConfig) -> Finding:
    """Sequences that begin with BOS twice: the text was already rendered, and the tokenizer adds another."""
    rows = tokenized.sample
    found = [row[0].row for row in rows if any(bos is not None and one.ids[:2] == [bos, bos] for one in row)]
    return finding(
        "tokens.double_bos",
        severity(len(found), len(rows), settings),
        f"{share(len(found), len(rows))} rows begin with BOS twice",
        {"rows": len(found)},
        [Example(texts.split, index, excerpt(texts.row(index))) for index in found[: settings.examples]],
        "The model sees in use another beginning than in training.",
        "Take BOS out of the texts, or out of the chat template.",
    )


def check_control_tokens(texts: Texts, special: Sequence[str], settings: DoctorConfig) -> Finding:
    """Messages whose text holds a special token of the tokenizer: `<|im_end|>` in a text ends the turn there."""
    pattern = re.compile("|".join(map(re.escape, special)) or "(?!)")
    found = [(index, match[0]) for index in range(len(texts)) if (match := pattern.search(texts.row(index)))]
    return finding(
        "tokens.control",
        severity(len(found), len(texts), settings),
        f"{share(len(found), len(texts))} rows have a special token of the tokenizer in a message",
        {"rows": len(found), "share": len(found) / len(texts)},
        [Example(texts.split, i, f"{token}: {excerpt(texts.row(i))}") for i, token in found[: settings.examples]],
        "The text ends its turn, or begins another's: the model learns turns that nobody wrote.",
        "Take the tokens out of the texts.",
    )


def check_template(notes: Mapping[str, str], rows: int) -> Finding:
    """What the chat template leaves out of the rows, by the plan's notes."""
    return finding(
        "template.left_out",
        "warning" if notes else "info",
        "; ".join(notes.values()) or f"the chat template writes all of {plural(rows, 'row')}",
        {"kinds": len(notes)},
        [],
        "What a template leaves out is not learnt.",
        "Set what the sentence names.",
    )
