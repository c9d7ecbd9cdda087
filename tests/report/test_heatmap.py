"""Text as coloured tokens: nothing lost, nothing run."""

import json
from html.parser import HTMLParser

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perplab.report.characters import cell, running
from perplab.report.heatmap import heat_map
from perplab.report.subject import characters

WHOLE = 10**9


class Tokens(HTMLParser):
    """The text of each `i` element, and every other element that is met."""

    def __init__(self, markup):
        super().__init__()
        self.texts, self.classes, self.others, self.outside = [], [], [], ""
        self._inside = False
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "i":
            self._inside = True
            self.texts.append("")
            self.classes.append(dict(attributes)["class"].split())
        else:
            self.others.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self._inside &= tag != "i"

    def handle_data(self, data):
        if self._inside:
            self.texts[-1] += data
        else:
            self.outside += data


@given(st.text(max_size=60), st.data())
def test_tokens_put_together_give_back_the_text_however_its_bytes_are_cut(text, data):
    content = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=8).map(sorted))
    pieces = characters(content, [*cuts, len(content)])
    assert len(pieces) == len(cuts) + 1
    assert "".join(pieces) == text


@given(st.text(max_size=40))
def test_markup_of_running_text_is_that_text_but_for_control_characters(text):
    parsed = Tokens(f"<i class=''>{running(text)}</i>")
    hidden = "".join(
        chr(int(attributes["data-code"], 16)) for _, attributes in parsed.others if attributes.get("data-code")
    )
    kept = text.translate(dict.fromkeys(map(ord, hidden)))
    assert parsed.texts == [kept]
    assert sorted(hidden + kept) == sorted(text)
    assert all(tag == "b" for tag, _ in parsed.others)


@given(st.text(max_size=40))
def test_a_cell_is_one_line_of_code_and_no_other_markup(text):
    parsed = Tokens(f"<i class=''>{cell(text)}</i>")
    assert [tag for tag, _ in parsed.others] == ["code"]
    assert not set(parsed.texts[0]) & set("\n\r\t\x00\x1b\u202e")
    assert parsed.texts[0]


def test_every_token_of_every_pane_stands_once_with_its_figures(subject_of):
    subjects = [subject_of("one", 1, 4), subject_of("two", 2, 2)]
    found = heat_map(subjects, WHOLE)
    assert len(found.documents) == len(subjects[0].excerpts)
    for place, document in enumerate(found.documents):
        for subject, pane, data in zip(subjects, document.panes, document.data, strict=True):
            excerpt = subject.excerpts[place]
            parsed = Tokens(pane)
            assert parsed.outside == ""
            assert len(parsed.texts) == len(excerpt.texts)
            np.testing.assert_allclose(np.array(data["nll"]) / 100, excerpt.nll, atol=0.0051)
            assert data["rank"] == excerpt.rank.tolist()
            assert len(data["log_probs"]) == len(data["alternatives"]) == data["count"] * len(excerpt.texts)
            assert sum(data["sizes"]) == excerpt.sizes.sum()
            assert [classes[0] for classes in parsed.classes] == [f"c{min(20, int(nll * 2))}" for nll in excerpt.nll]


def test_alternatives_read_from_the_data_are_those_of_the_model(subject_of):
    subject = subject_of("one", 1, 4)
    value = json.loads(heat_map([subject], WHOLE).data)
    for excerpt, (pane,) in zip(subject.excerpts, value["documents"], strict=True):
        words = [value["spelling"][0][index] for index in pane["alternatives"]]
        assert words == [subject.spelling[token] for token in excerpt.alternatives.token_ids.ravel().tolist()]


def test_costs_laid_over_the_other_models_tokens_add_up_to_what_the_document_costs(subject_of):
    subjects = [subject_of("one", 1, 4), subject_of("two", 2, 2)]
    for place, document in enumerate(heat_map(subjects, WHOLE).documents):
        for number, other in enumerate(document.others):
            whole = subjects[1 - number].excerpts[place]
            if len(whole.texts) == whole.num_tokens:
                np.testing.assert_allclose(other.sum(), whole.nll.sum(dtype=np.float64), rtol=1e-5)


def test_a_model_beside_itself_differs_nowhere(subject_of):
    subject = subject_of("one", 1, 4)
    for document in heat_map([subject, subject], WHOLE).documents:
        parsed = Tokens(document.panes[1])
        assert not any(name[0] in "mp" for classes in parsed.classes for name in classes)
        assert all(pane["other"] == pane["nll"] for pane in document.data)


def test_documents_are_dropped_from_the_end_until_markup_and_data_fit_the_budget(subject_of):
    subjects = [subject_of("one", 1, 4), subject_of("two", 2, 2)]
    everything = heat_map(subjects, WHOLE)
    rows = [document.row for document in everything.documents]
    sizes = []
    for budget in range(0, 200_000, 10_000):
        found = heat_map(subjects, budget)
        assert [document.row for document in found.documents] == rows[: len(found.documents)]
        markup = sum(len(pane.encode()) for document in found.documents for pane in document.panes)
        assert not found.documents or markup + len(found.data) <= budget + 1000  # names and keys of the whole
        sizes.append(len(found.documents))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == len(rows)
