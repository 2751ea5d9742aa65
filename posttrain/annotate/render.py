"""Model output as safe HTML: Markdown without raw HTML, then sanitised."""

from __future__ import annotations

import functools
import html
from typing import Any

# Longer text is shown as plain text, since rendering it as Markdown would take too long.
LONGEST = 50_000
TAGS = set(
    "p br hr h1 h2 h3 h4 h5 h6 strong em s code pre blockquote ul ol li table thead tbody tr th td a".split()  # noqa: SIM905
)


def to_html(text: str) -> str:
    """Safe HTML of Markdown `text`: no scripts, styles, images, forms or frames; links to http, https and mailto only.

    The parser escapes HTML, the sanitiser removes any that is left, and the page's Content-Security-Policy blocks
    scripts and foreign content.
    """
    if len(text) > LONGEST:
        return f"<pre>{html.escape(text)}</pre>"
    import nh3

    return nh3.clean(
        _parser().render(text),
        tags=TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@functools.cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    # Images stay links, since the browser would fetch them from any address in the text.
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
