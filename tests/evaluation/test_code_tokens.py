"""Names and brackets where they are code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.evaluation.code_tokens import CLOSING, code_tokens, matched_brackets
from perplab.text import Document

PYTHON = '''
def area(width, shape="a(b"):  # a comment with ] and }
    """Doc string with ( in it."""
    values = {1: [width], 'x)': f"{width!r:>{10}} ("}
    return values[1](lambda_=shape)
'''

CPP = r"""
#include "strange(header.h"
// a comment with ] \
   and one more )
template <typename T> struct Box { T value[3]; };  /* { */
auto raw = R"x(text with )" and ( in it)x";
char quote = '(', tick = '\'', big = 1'000'000;
int call(Box<int>& box) { return box.value[0x1F'FF] + f("]\")"); }
"""


def spelled(tokens, kinds):
    return [token.text for token in tokens if token.kind in kinds]


def test_python_brackets_and_names_are_those_outside_strings_and_comments():
    tokens = code_tokens(Document(PYTHON, "python", "shapes.py"))
    assert spelled(tokens, ("open", "close")) == list("(){[]}[]()")
    assert spelled(tokens, ("name",)) == [*("area", "width", "shape", "values", "width", "values", "lambda_", "shape")]
    assert all(PYTHON.startswith(token.text, token.start) for token in tokens)


def test_c_brackets_and_names_are_those_outside_strings_comments_and_characters():
    tokens = code_tokens(Document(CPP, "cpp", "include/box.h"))
    assert spelled(tokens, ("open", "close")) == list("{[]}(){[]()}")
    assert spelled(tokens, ("name",)) == [
        *("T", "Box", "T", "value", "raw", "quote", "tick", "big", "call", "Box", "box", "box", "value", "f")
    ]
    assert all(CPP.startswith(token.text, token.start) for token in tokens)


@pytest.mark.parametrize(
    ("text", "domain", "name"),
    [
        ("The module's doc string: see below.\n", "docstrings", "torch/nn/module.py"),
        ("x = 1\n", "web", "page.txt"),
        ("let x: &'a str;", "rs", "lib.rs"),
    ],
)
def test_prose_and_unknown_languages_are_not_code(text, domain, name):
    assert code_tokens(Document(text, domain, name)) is None


def test_rows_of_a_table_are_told_by_their_domain():
    assert code_tokens(Document("f(x)\n", "python", "rows#3")) is not None


ATOMS = st.sampled_from(["name", "3", "'(]'", '"}"'])
NESTED = st.recursive(
    ATOMS, lambda inner: st.tuples(st.sampled_from("([{"), st.lists(inner, max_size=4)), max_leaves=20
)
COMMENTS = {"shapes.py": ["# [{(\n"], "shapes.cpp": ["// [{(\n", "/* ) */"]}


def written(tree, pieces, pairs, between):
    """Append the source of a tree, and its pairs in the order they close."""
    if isinstance(tree, str):
        pieces.append(tree)
        return
    bracket, children = tree
    start = sum(map(len, pieces))
    pieces.append(bracket)
    for child in children:
        written(child, pieces, pairs, between)
        pieces.append(f", {between}")
    pairs.append((start, sum(map(len, pieces))))
    pieces.append(CLOSING[bracket])


@pytest.mark.parametrize(("name", "between"), [(name, text) for name, texts in COMMENTS.items() for text in texts])
@given(tree=NESTED)
def test_pairs_are_those_that_were_written(name, between, tree):
    pieces, pairs = [], []
    written(tree, pieces, pairs, between)
    tokens = code_tokens(Document("".join(pieces), "code", name))
    assert [(opening.start, closing.start) for opening, closing in matched_brackets(tokens)] == pairs


def test_pairs_end_where_a_bracket_fits_nothing():
    tokens = code_tokens(Document("f(a) [ } g(b)", "cpp", "macro.h"))
    assert [opening.start for opening, _ in matched_brackets(tokens)] == [1]
