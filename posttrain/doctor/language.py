"""Languages of rows, and text that was decoded wrongly."""

import re
from collections import Counter

import numpy as np

from posttrain.config.schema import DoctorConfig
from posttrain.doctor.finding import Example, Finding, excerpt, finding, severity, share
from posttrain.doctor.texts import Texts
from posttrain.probe.intervals import wilson

SAMPLE, SEED = 1000, 0
# Letters that a text needs for a reliable answer; the detector's least probability; characters of a row that are read.
LETTERS, SURE, READ = 60, 0.99, 1000
# C0 and C1 but for tab and line ends, and the characters that reorder text on a screen.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
KINDS = ("wrongly decoded text", "replacement characters", "control characters")


def check_languages(texts: Texts, settings: DoctorConfig) -> Finding:
    """The languages of a sample of rows; rows of doubtful language are not counted."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(texts))[:SAMPLE])
    known: dict[int, str] = {}
    for index in chosen.tolist():
        text = texts.row(index)[:READ]
        if sum(map(str.isalpha, text)) >= max(LETTERS, len(text) / 2):
            language, confidence = identifier.classify(text)
            if confidence >= SURE:
                known[index] = language
    counts = Counter(known.values())
    main = counts.most_common(1)[0][0] if counts else ""
    others = [index for index, language in known.items() if language != main]
    listed = ", ".join(f"{name} {count / len(known):.1%}" for name, count in counts.most_common(5))
    sampled = f"{len(known):,} sampled row{'' if len(known) == 1 else 's'} whose language is plain"
    # The lower end of the interval, since a detector may be wrong on a row or two.
    low = wilson(len(others), len(known))[0] if known else 0.0
    return finding(
        "languages",
        "warning" if others and low >= settings.other_language else "info",
        f"of {sampled}: {listed}" if known else "no row is long enough to tell its language",
        {"rows": len(known), "other_share": len(others) / len(known) if known else 0.0},
        [Example(texts.split, i, f"{known[i]}: {excerpt(texts.row(i))}") for i in others[: settings.examples]],
        "The model may answer in a language that it was not asked in.",
        "Take the other languages out; where they are meant, set doctor.other_language=1.",
    )


def check_encoding(texts: Texts, settings: DoctorConfig) -> Finding:
    """Mojibake (UTF-8 read as something else), U+FFFD, and control characters, in every row."""
    from ftfy import fix_text
    from ftfy.badness import is_bad

    counts: Counter[str] = Counter()
    rows: list[tuple[int, str]] = []
    for index in range(len(texts)):
        text = texts.row(index)
        if text.isascii() and not CONTROL.search(text):
            continue
        # Line by line, as in ftfy, since lines can have different encodings.
        bad = next((line for line in text.splitlines() if not line.isascii() and is_bad(line)), None)
        faults = [
            kind
            for kind, there in zip(KINDS, (bad is not None, "\ufffd" in text, CONTROL.search(text)), strict=True)
            if there
        ]
        counts.update(faults)
        if faults:
            repaired = f"{excerpt(bad, 100)} → {excerpt(fix_text(bad), 100)}" if bad else excerpt(text)
            rows.append((index, f"{', '.join(faults)}: {CONTROL.sub('�', repaired)}"))
    return finding(
        "encoding",
        severity(len(rows), len(texts), settings),
        f"{share(len(rows), len(texts))} rows with encoding trouble"
        + "".join(f"; {kind} in {counts[kind]:,}" for kind in KINDS if counts[kind]),
        {"rows": len(rows), **{kind: counts[kind] for kind in KINDS}},
        [Example(texts.split, index, text) for index, text in rows[: settings.examples]],
        "The model learns to write what it read.",
        "Read the source again as UTF-8, or repair the texts with ftfy.fix_text (pip install ftfy).",
    )
