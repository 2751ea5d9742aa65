"""Personal data and secrets by their shape, checked by their check digits where they have some."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator

# Repeats are bounded, so that the time for a hostile row is linear in its length.
SECRETS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{22,255})",
    "OpenAI or Anthropic key": r"\bsk-[0-9A-Za-z_-]{20,255}",
    "Hugging Face token": r"\bhf_[0-9A-Za-z]{30,255}",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "Slack token": r"\bxox[abposr]-[0-9A-Za-z-]{10,255}",
    "private key": r"-----BEGIN (?:[A-Z]{1,20} ){0,3}PRIVATE KEY-----[0-9A-Za-z+/=\s:,.-]{0,10000}",
    "JSON web token": r"\beyJ[0-9A-Za-z_-]{8,2000}\.eyJ[0-9A-Za-z_-]{8,4000}\.[0-9A-Za-z_-]{8,2000}",
}
PERSONAL = {
    "e-mail address": r"(?<![\w.+-])[\w.+-]{1,64}@(?:[0-9A-Za-z-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
    "phone number": r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-])",
    "IBAN": r"\b[A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?\b",
    "card number": r"(?<![\w.-])[3-6](?:[ -]?\d){12,18}(?![\w-])",
    "IP address": r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w.]\d|\w)",
}


def _luhn(found: str) -> bool:
    """Whether the check digit of a payment card (ISO/IEC 7812-1) is right; cards have 13 to 19 digits."""
    digits = [int(c) for c in found if c.isdigit()]
    doubled = [d * 2 - 9 if d > 4 else d * 2 for d in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _iban(found: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 13616): rearranged and read as a number, it is 1 mod 97."""
    plain = found.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _address(found: str) -> bool:
    """Whether it is a public address. Private ones identify nobody; low first numbers are mostly versions (1.2.3.4)."""
    try:
        return ipaddress.IPv4Address(found).is_global and int(found.split(".")[0]) > 9
    except ValueError:
        return False


def _key(found: str) -> bool:
    """Whether it is random enough for a key, unlike words with hyphens."""
    return any(c.isdigit() for c in found) and any(c.isupper() for c in found)


CHECKS: dict[str, Callable[[str], bool]] = {
    "card number": _luhn,
    "IBAN": _iban,
    "IP address": _address,
    "OpenAI or Anthropic key": _key,
}
# A pattern is tried only on texts that contain its hint, since the search for a few letters is much faster.
HINTS = {
    "AWS access key": "IA",
    "GitHub token": "_",
    "OpenAI or Anthropic key": "sk-",
    "Hugging Face token": "hf_",
    "Google API key": "AIza",
    "Slack token": "xox",
    "private key": "PRIVATE KEY",
    "JSON web token": "eyJ",
    "e-mail address": "@",
    "IP address": ".",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in {**SECRETS, **PERSONAL}.items()}
DIGIT = re.compile(r"\d")
NUMBERS = ("phone number", "IBAN", "card number", "IP address", "AWS access key")


def found(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of everything that looks like personal data or a secret."""
    numbers = DIGIT.search(text) is not None
    for name, pattern in PATTERNS.items():
        if (not numbers and name in NUMBERS) or HINTS.get(name, "") not in text:
            continue
        for match in pattern.finditer(text):
            if name not in CHECKS or CHECKS[name](match[0]):
                yield name, *match.span()


def kinds(text: str) -> Counter[str]:
    """How often each kind is in a text."""
    return Counter(name for name, _, _ in found(text))


def masked(text: str) -> str:
    """The text with all that was found reduced to its first characters."""
    ends = 0
    pieces = []
    for name, start, end in sorted(found(text), key=lambda hit: (hit[1], -hit[2])):
        if end <= ends:
            continue
        shown = text[start : start + (4 if name in SECRETS else 2)]
        pieces += [text[ends : max(start, ends)], f"{shown if start >= ends else ''}•••• [{name}]"]
        ends = end
    return "".join([*pieces, text[ends:]])
