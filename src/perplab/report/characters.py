"""Text from anywhere, made safe to look at: what blanks, line ends and control characters become on the page.

- Running text keeps its characters, so it can be searched, copied and read aloud; the style sheet draws marks for line
  ends and tabs. Only control characters are replaced, by their numbers: they turn the direction of the text, break its
  lines, or leave no trace.
- In a table's cell, which is one line, marks stand in their place.
"""

from markupsafe import Markup

PART = "\N{WHITE SQUARE}"
"""Stands for a token whose bytes complete no character."""

_UNSEEN = "\x7f\xad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
_CONTROLS = sorted({*range(0x20), *range(0x80, 0xA0), *map(ord, _UNSEEN)})

_RUNNING: dict[int, str] = {
    **{code: f'<b class="x" data-code="{code:02X}"></b>' for code in _CONTROLS},
    ord("\n"): "<b>\n</b>",
    ord("\r"): '<b class="r">&#13;</b>',  # a parser would make a line end of it
    ord("\t"): '<b class="t">\t</b>',
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}
_CELL: dict[int, str] = {
    **{
        code: f"\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}{code:02X}\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
        for code in _CONTROLS
    },
    ord("\n"): "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    ord("\t"): "\N{RIGHTWARDS ARROW}",
}


def running(text: str) -> str:
    """Markup of text that flows over lines."""
    return text.translate(_RUNNING)


def cell(text: str) -> Markup:
    """Markup of a piece of text in one line."""
    return Markup("<code>{}</code>").format((text or PART).translate(_CELL))
