"""Duplicate rows, near duplicates, and held-out prompts that are also trained on.

Near duplicates by MinHash (Broder 1997, "On the resemblance and containment of documents") over shingles of three
words, with candidates from locality-sensitive hashing: two texts with Jaccard similarity s meet in one of 16 bands of
8 hashes with probability 1 - (1 - s^8)^16: 0.95 for s = 0.8, 0.999 for s = 0.9. Their similarity is then estimated from
all 128 hashes, with a standard error of 0.03 at 0.85.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from posttrain.config.schema import DoctorConfig
from posttrain.doctor.finding import Example, Finding, excerpt, finding, severity, share
from posttrain.doctor.texts import Texts

PERMUTATIONS, BANDS, SHINGLE, SEED = 128, 16, 3, 42
BATCH = 2000


def normal(text: str) -> str:
    """Text in lower case with single spaces, so that differences in case and white space do not count."""
    return " ".join(text.lower().split())


def shingles(text: str) -> list[str]:
    """Runs of three words, or of characters in scripts that put no spaces between words."""
    words = text.split()
    units = words if len(text) < 20 * len(words) else list(text)
    if len(units) <= SHINGLE:
        return [text]
    return [" ".join(run) for run in zip(*(units[i:] for i in range(SHINGLE)), strict=False)]


def signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures (texts, 128)."""
    from rensa import RMinHash

    parts = [np.empty((0, PERMUTATIONS), np.uint32)]
    for start in range(0, len(texts), BATCH):
        sets = [shingles(text) for text in texts[start : start + BATCH]]
        rows = RMinHash.digest_matrix_from_token_sets(sets, PERMUTATIONS, SEED).to_rows()
        parts.append(np.array(rows, np.uint32))
    return np.concatenate(parts)


def near_pairs(signature: np.ndarray, near: float) -> np.ndarray:
    """Pairs (m, 2), i < j, whose estimated similarity is at least `near`.

    Among texts that share a band, each is compared only with the first and with the one before it, so that a cluster of
    n texts costs 2n comparisons.
    """
    generator = np.random.default_rng(SEED)
    found = [np.empty((0, 2), np.int64)]
    for band in np.split(signature.astype(np.uint64), BANDS, axis=1):
        odd = generator.integers(1 << 62, size=band.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        keys = (band * odd).sum(1, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
        first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
        before = np.concatenate([order[:1], order[:-1]])
        found += [np.stack([first, order], 1)[same], np.stack([before, order], 1)[same]]
    pairs = np.unique(np.concatenate(found), axis=0)
    alike = [
        (signature[part[:, 0]] == signature[part[:, 1]]).mean(1)
        for part in np.array_split(pairs, len(pairs) // 10000 + 1)
    ]
    return pairs[np.concatenate(alike) >= near]


def clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """The cluster of each text, (count,): the connected components of `pairs`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _firsts(texts: Iterable[str]) -> dict[str, int]:
    """Text -> the index of its first occurrence."""
    firsts: dict[str, int] = {}
    for index, text in enumerate(texts):
        firsts.setdefault(text, index)
    return firsts


def check_rows(texts: Texts, settings: DoctorConfig) -> list[Finding]:
    """Rows of the training split that repeat another, exactly and nearly."""
    whole = [normal(text) for text in texts.whole()]
    labels = texts.labels or [True] * len(whole)
    # One completion with both labels is a contradiction, not a copy.
    firsts: dict[tuple[str, object], int] = {}
    copies = [
        (i, first) for i, key in enumerate(zip(whole, labels, strict=True)) if (first := firsts.setdefault(key, i)) != i
    ]
    distinct = list(_firsts(whole).values())
    pairs = near_pairs(signatures([whole[i] for i in distinct]), settings.near)
    if texts.labels is not None:
        # Two labelled answers to one prompt are what KTO learns from, not duplicates, even if the prompt is long.
        asked = [normal(texts.prompts[i]) for i in distinct]
        pairs = np.array([pair for pair in pairs.tolist() if asked[pair[0]] != asked[pair[1]]], int).reshape(-1, 2)
    near = len(distinct) - len(np.unique(clusters(len(distinct), pairs)))
    total, count = len(texts), settings.examples
    return [
        finding(
            "duplicates.exact",
            severity(len(copies), total, settings, worst="warning"),
            f"{share(len(copies), total)} rows repeat an earlier one, but for case and white space",
            {"rows": len(copies), "share": len(copies) / total},
            [Example(texts.split, i, f"= row {first}: {excerpt(texts.row(i))}") for i, first in copies[:count]],
            "A repeated row weighs that much more, and is the first to be learnt by heart.",
            "Keep one of each, unless the weight is meant.",
        ),
        finding(
            "duplicates.near",
            severity(near, total, settings, worst="warning"),
            f"{share(near, total)} rows are nearly the same as another (similarity at least {settings.near:g})",
            {"rows": near, "share": near / total},
            [
                Example(texts.split, distinct[j], f"≈ row {distinct[i]}: {excerpt(texts.row(distinct[j]))}")
                for i, j in pairs[:count]
            ],
            "The data says less than its size: the same text is learnt again and again.",
            "Keep one of each cluster, or train fewer epochs. Rows that share a long context by design may stay.",
        ),
    ]


def check_prompts(train: Texts, held_out: Texts | None, settings: DoctorConfig) -> list[Finding]:
    """Held-out prompts that are trained on, exactly or nearly; and how different the prompts are."""
    firsts = _firsts(map(normal, train.asked))
    own = list(firsts)
    theirs = [text for text in map(normal, held_out.asked) if text not in firsts] if held_out else []
    pairs = near_pairs(signatures([*own, *theirs]), settings.near)
    findings = []
    if held_out is not None:
        findings += _overlap(train, held_out, firsts, pairs, settings)
    inner = pairs[(pairs < len(own)).all(1)]
    findings.append(_diversity(train, firsts, clusters(len(own), inner), settings))
    return findings


def _overlap(
    train: Texts, held_out: Texts, firsts: dict[str, int], pairs: np.ndarray, settings: DoctorConfig
) -> list[Finding]:
    own, places, total = list(firsts.values()), list(map(normal, held_out.asked)), len(held_out)
    exact = [(i, firsts[text]) for i, text in enumerate(places) if text in firsts]
    others = [i for i, text in enumerate(places) if text not in firsts]
    cross = pairs[(pairs[:, 0] < len(own)) & (pairs[:, 1] >= len(own))]
    near = {others[j - len(own)]: own[i] for i, j in cross.tolist()}
    fix = "Hold out whole prompts: leave data.eval_split and data.eval_path out, or take these rows out of training."
    count = settings.examples
    return [
        finding(
            "overlap.exact",
            severity(len(exact), total, settings),
            f"{share(len(exact), total)} held-out prompts are trained on as well",
            {"rows": len(exact), "share": len(exact) / total},
            [Example(held_out.split, i, f"= train row {j}: {excerpt(held_out.asked[i])}") for i, j in exact[:count]],
            "Held-out numbers come out better than the model is.",
            fix,
        ),
        finding(
            "overlap.near",
            severity(len(near), total, settings, worst="warning"),
            f"{share(len(near), total)} held-out prompts are nearly the same as one that is trained on",
            {"rows": len(near), "share": len(near) / total},
            [
                Example(held_out.split, i, f"≈ train row {j}: {excerpt(held_out.asked[i])}")
                for i, j in list(near.items())[:count]
            ],
            "Held-out numbers measure what was trained on rather than what carries over.",
            "Split by what prompts share (document, template, author) and give the other part as data.eval_path.",
        ),
    ]


def _diversity(texts: Texts, firsts: dict[str, int], cluster: np.ndarray, settings: DoctorConfig) -> Finding:
    from posttrain.probe.diversity import distinct

    sizes = np.bincount(cluster)
    largest, members = int(sizes.max()), np.flatnonzero(cluster == sizes.argmax())
    prompts, rows = list(firsts), list(firsts.values())
    sample = [prompts[i] for i in np.random.default_rng(SEED).permutation(len(prompts))[:1000]]
    words = [prompt.split() for prompt in sample]
    one, two = (distinct(words, n) or 0.0 for n in (1, 2))
    alike = largest / len(prompts) if largest > 1 else 0.0
    nearly = f"the largest cluster of nearly equal ones holds {alike:.1%} of them" if alike else "no two nearly equal"
    return finding(
        "diversity",
        "warning" if alike >= settings.cluster else "info",
        f"{len(prompts):,} different prompts in {len(texts):,} rows, {nearly}; distinct-1 {one:.2f} and distinct-2 "
        f"{two:.2f} over {len(sample):,} prompts",
        {"prompts": len(prompts), "largest_cluster": alike, "distinct_1": one, "distinct_2": two},
        [Example(texts.split, rows[i], excerpt(texts.asked[rows[i]])) for i in members[: settings.examples] if alike],
        "The model learns one kind of question; what it does with others is left to chance.",
        "Thin the cluster out, or add prompts of other kinds.",
    )
