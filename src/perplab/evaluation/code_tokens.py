"""Names and brackets of source code, where they are code: not in strings and not in comments.

Decisions:
- Python is what its own tokenizer reads, and only where the whole document parses. Doc strings and other prose that
  came out of a .py file are therefore not taken for code.
- Languages that share C's comments, strings and character literals share one lexer. Languages with other literals
  (JavaScript's regular expressions, Rust's lifetimes) would need their own and are left out.
- The fields of an f-string count as string, in every version of Python.
"""

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from perplab.text import Document

CLOSING = {"(": ")", "[": "]", "{": "}"}

_PYTHON_SUFFIXES = {".py", ".pyi", ".python"}
_C_SUFFIXES = {".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".inl", ".cu", ".cuh", ".java", ".cs"}
_C_LEXEMES = re.compile(
    r"""
      (?P<skipped> //(?:[^\n\\]|\\.)* | /\*.*?\*/ | R"(?P<raw>[^(\s]{0,16})\(.*?\)(?P=raw)"
        | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' )
    | (?P<number> \.?\d(?:'?[\w.])* )
    | (?P<keyword> \b(?:alignas|alignof|auto|bool|break|case|catch|char|class|concept|const|constexpr|const_cast
        |continue|decltype|default|define|defined|delete|do|double|dynamic_cast|elif|else|endif|enum|explicit|export|extends
        |extern|false|final|float|for|friend|goto|if|ifdef|ifndef|implements|import|include|inline|int|interface|long|mutable
        |namespace|new|noexcept|null|nullptr|operator|override|package|pragma|private|protected|public|register
        |reinterpret_cast|requires|return|short|signed|sizeof|static|static_assert|static_cast|struct|super|switch
        |synchronized|template|this|throw|throws|true|try|typedef|typeid|typename|undef|union|unsigned|using|virtual|void
        |volatile|wchar_t|while)\b )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<bracket> [()\[\]{}] )
    """,
    re.VERBOSE | re.DOTALL,
)


class CodeToken(NamedTuple):
    """A name that is no keyword, or a bracket.

    Attributes:
        kind: which of the three.
        text: as written.
        start: offset in the document, in characters.
    """

    kind: Literal["name", "open", "close"]
    text: str
    start: int


def code_tokens(document: Document) -> list[CodeToken] | None:
    """The names and brackets of a document in their order, or None where it is not code in a language known here."""
    name = PurePosixPath(document.name.partition("#")[0])
    suffix = (name.suffix or f".{document.domain}").lower()
    lexer = _LEXERS.get(suffix)
    return lexer(document.text) if lexer else None


def matched_brackets(tokens: Sequence[CodeToken]) -> Iterator[tuple[CodeToken, CodeToken]]:
    """Pairs of an opening and its closing bracket, in the order of the closing ones.

    It ends before a closing bracket that fits nothing, as macros and branches of the preprocessor can leave behind.
    """
    opened: list[CodeToken] = []
    for token in tokens:
        if token.kind == "open":
            opened.append(token)
        elif token.kind == "close":
            if not opened or CLOSING[opened[-1].text] != token.text:
                return
            yield opened.pop(), token


def _python_tokens(text: str) -> list[CodeToken] | None:
    if not _parses(text):
        return None
    starts = list(accumulate((len(line) for line in io.StringIO(text)), initial=0))
    found: list[CodeToken] = []
    fstrings = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        fstrings += {"FSTRING_START": 1, "FSTRING_END": -1}.get(kind, 0)
        offset = starts[token.start[0] - 1] + token.start[1]
        if fstrings == 0 and text.startswith(token.string, offset):
            found.extend(_token(token.string, offset, is_name=kind == "NAME" and not keyword.iskeyword(token.string)))
    return found


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _c_tokens(text: str) -> list[CodeToken]:
    lexemes = _C_LEXEMES.finditer(text)
    return [
        token
        for lexeme in lexemes
        if lexeme["name"] or lexeme["bracket"]
        for token in _token(lexeme[0], lexeme.start(), is_name=bool(lexeme["name"]))
    ]


def _token(text: str, start: int, *, is_name: bool) -> Iterator[CodeToken]:
    if is_name:
        yield CodeToken("name", text, start)
    elif text in CLOSING:
        yield CodeToken("open", text, start)
    elif text in CLOSING.values():
        yield CodeToken("close", text, start)


_LEXERS: dict[str, Callable[[str], list[CodeToken] | None]] = {
    **dict.fromkeys(_PYTHON_SUFFIXES, _python_tokens),
    **dict.fromkeys(_C_SUFFIXES, _c_tokens),
}
