"""The page as a file: whole, inert, small, and the same each time."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from perplab.errors import PerplabError
from perplab.report import ReportConfig, report, write
from perplab.report.page import MAX_BYTES
from random_subjects import CLAIMS, DOCUMENTS, NASTY, random_subject

VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text in each, and whether tags nest."""

    def __init__(self, page):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self._open[-1]["tag"] == tag, (tag, self._open[-1])
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]


@pytest.fixture(scope="module", params=["one", "two", "claims"])
def page(request):
    return report([], CLAIMS) if request.param == "claims" else request.getfixturevalue(request.param)


def test_tags_nest_and_ids_are_unique_and_references_to_them_lead_somewhere(page):
    elements = Page(page).elements
    ids = [element["id"] for element in elements if "id" in element]
    assert len(set(ids)) == len(ids)
    for element in elements:
        references = [element.get("aria-labelledby"), (element.get("href") or "#").partition("#")[2]]
        assert {reference for reference in references if reference} <= set(ids)


def test_nothing_comes_from_outside(page):
    for element in Page(page).elements:
        assert element["tag"] not in {"img", "iframe", "object", "embed", "audio", "video", "base", "form"}
        assert "src" not in element
        assert (element.get("href") or "#").startswith(("#", "data:,"))
    (style,) = Page(page).all("style")
    assert not re.search(r"@import|@font-face|url\((?!#)|https?:", style["text"])


def test_hostile_names_domains_and_texts_are_text(page):
    parsed = Page(page)
    assert len(parsed.all("script")) == (2 if parsed.all("aside") else 1)
    assert not [key for element in parsed.elements for key in element if key.startswith("on")]
    assert any(NASTY in element["text"] for element in parsed.all("body"))


def test_the_policy_allows_the_style_and_the_script_of_the_page_by_hash_and_nothing_else(page):
    parsed = Page(page)
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    code = {"style-src": parsed.all("style")[0]["text"], "script-src": parsed.all("script")[-1]["text"]}
    for kind, content in code.items():
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {*code, "default-src", "img-src", "base-uri", "form-action"}
    assert not [element for element in parsed.elements if "style" in element]


def test_data_is_json_and_cannot_end_its_element(two):
    (data, _) = Page(two).all("script")
    assert data["type"] == "application/json"
    assert not set("<>&") & set(data["text"])
    value = json.loads(data["text"])
    assert value["models"] == ["a model", NASTY]
    assert len(value["documents"]) == len(DOCUMENTS)


def test_text_of_every_document_stands_in_the_page_once_for_each_model(two):
    panes = [element["text"] for element in Page(two).all("div") if element.get("class") == "text"]
    controls = dict.fromkeys(map(ord, "\x00\x1b\u202e\u202c"))
    shown = [documents[2].translate(controls) for documents in (DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[2])]
    assert panes[0::2] == panes[1::2]
    assert panes[0:6:2] == shown


def test_every_plot_has_a_name_and_every_table_a_caption_and_headings(page):
    parsed = Page(page)
    plots = [element for element in parsed.all("svg") if element.get("role") == "img"]
    assert len(plots) == len(parsed.all("figure"))
    assert all(plot["aria-label"] for plot in plots)
    assert len(parsed.all("table")) == len(parsed.all("caption"))
    assert all(heading.get("scope") in {"col", "row"} for heading in parsed.all("th"))


def test_of_two_models_the_differences_are_shown_and_said_in_words(one, two):
    assert "between" in two
    assert "paired by document" in two
    assert "Differences by domain" in two
    assert "Differences by domain" not in one


def test_one_document_gives_figures_without_intervals(subject_of):
    subjects = [random_subject(f"model {seed}", seed, 3, DOCUMENTS[:1]) for seed in (1, 2)]
    page = report(subjects)
    assert "One document tells no interval for the difference between model 2 and model 1." in page
    assert 'class="interval"' not in page


def test_claims_are_shown_with_their_verdicts_in_words():
    parsed = Page(report([], CLAIMS))
    verdicts = [" ".join(span["text"].split()) for span in parsed.all("span") if "verdict" in span.get("class", "")]
    assert [verdict.partition(" ")[2] for verdict in verdicts] == [claim["verdict"] for claim in CLAIMS]
    assert "Claims that hold here, in full or in direction: 2 of 3." in parsed.all("body")[0]["text"]
    assert [section["id"] for section in parsed.all("section")] == ["claims"]


def test_the_same_input_gives_the_same_bytes(two, subject_of):
    again = [random_subject("a model", 1, 4), random_subject(NASTY, 2, 3)]
    assert report(again) == two


def test_a_page_stays_below_its_limit_and_says_what_it_leaves_out():
    documents = [(f"document {row} " + "n" * 500, f"domain {row}", "\n<&é " * 900) for row in range(60)]
    settings = ReportConfig(shown_documents=40, alternatives=20)
    page = report([random_subject(f"model {seed}", seed, 1, documents, settings) for seed in (1, 2)])
    assert len(page.encode()) < MAX_BYTES
    parsed = Page(page)
    shown = len([article for article in parsed.all("article") if article.get("class") == "document"])
    assert 1 <= shown < 40
    assert f"Shown are {shown} of 60 documents" in page
    assert f"Not shown: {60 - shown} documents" in page


def test_an_excerpt_that_fits_no_page_is_refused():
    documents = [("large", "d", "x " * 50_000), ("other", "d", "y")]
    with pytest.raises(PerplabError, match="does not fit the page"):
        report([random_subject("model", 1, 1, documents, ReportConfig(shown_bytes=100_000))])


def test_pages_without_content_or_with_too_much_are_refused(subject_of):
    with pytest.raises(PerplabError, match="nothing to report"):
        report([])
    with pytest.raises(PerplabError, match="a report of 3 models"):
        report([subject_of("a model", 1, 4)] * 3)
    with pytest.raises(PerplabError, match="has no 'deterministic'"):
        report([], [{"paper": "p", "verdict": "holds"}])
    with pytest.raises(PerplabError, match="give fewer claims"):
        report([], [CLAIMS[0] | {"statement": "long " * 1_000_000}])


def test_writing_puts_the_page_on_the_disk_unchanged(tmp_path, one):
    write(one, tmp_path / "deep" / "page.html")
    assert Path(tmp_path / "deep" / "page.html").read_bytes() == one.encode()
