"""Personal data and secrets in rows."""

from collections import Counter

from posttrain.config.schema import DoctorConfig
from posttrain.doctor.finding import Example, Finding, finding, plural, severity
from posttrain.doctor.patterns import PERSONAL, SECRETS, found, masked
from posttrain.doctor.texts import Texts


def check(splits: list[Texts], settings: DoctorConfig) -> list[Finding]:
    """Secrets, any of which is an error, and personal data, over all splits."""
    rows: dict[str, set[tuple[int, int]]] = {"secrets": set(), "personal": set()}
    counts: dict[str, Counter[str]] = {"secrets": Counter(), "personal": Counter()}
    examples: dict[str, list[Example]] = {"secrets": [], "personal": []}
    for which, texts in enumerate(splits):
        for index in range(len(texts)):
            text = texts.everything(index)
            for kind, start, end in found(text):
                group = "secrets" if kind in SECRETS else "personal"
                counts[group][kind] += 1
                rows[group].add((which, index))
                if counts[group][kind] <= max(settings.examples // 2, 1):
                    examples[group].append(Example(texts.split, index, _around(text, start, end)))
    total = sum(map(len, splits))
    return [
        finding(
            "secrets",
            "error" if rows["secrets"] else "info",
            _says(counts["secrets"], len(rows["secrets"]), "keys or tokens"),
            {"rows": len(rows["secrets"]), **{kind: counts["secrets"][kind] for kind in SECRETS}},
            examples["secrets"],
            "A model can repeat what it was trained on, word for word, to anyone who asks.",
            "Revoke the keys, and take the rows out or replace the keys by a placeholder.",
        ),
        finding(
            "personal",
            severity(len(rows["personal"]), total, settings, worst="warning"),
            _says(counts["personal"], len(rows["personal"]), "personal data by its shape"),
            {"rows": len(rows["personal"]), **{kind: counts["personal"][kind] for kind in PERSONAL}},
            examples["personal"],
            "The model may learn the data of people who did not agree to it, and models are hard to make forget.",
            "Replace what is real by placeholders; shapes alone also match examples and public contacts.",
        ),
    ]


def _says(counts: Counter[str], rows: int, what: str) -> str:
    if not rows:
        return f"no {what}"
    listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    return f"{what} in {plural(rows, 'row')}: {listed}"


def _around(text: str, start: int, end: int, context: int = 60) -> str:
    """The masked find with some text on both sides, which is masked before the cut, as that may divide another find."""
    before = " ".join(masked(text[:start]).split())[-context:]
    after = " ".join(masked(text[end:]).split())[:context]
    return f"{before} {masked(text[start:end])} {after}".strip()
