"""A reward of a user's own, found on the path as a user's module is."""


def letter(completions, **columns):
    """Share of characters that are the letter e or above in the alphabet's order."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [sum(ch >= "e" for ch in t) / max(len(t), 1) for t in texts]


def early(completions, **columns):
    """What `letter` is not: the share of characters before e."""
    return [1 - share for share in letter(completions)]
