import ast
import subprocess
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest

from perplab.errors import PerplabError
from perplab.text import open_corpus
from perplab.text.builtin import BuiltinSource

NAMES = ["python", "reference", "docstrings", "cpp"]


def first(name, count=40):
    return list(islice(open_corpus(f"builtin:{name}"), count))


@pytest.mark.parametrize("name", NAMES)
def test_a_builtin_corpus_has_text_of_its_own_domain_in_the_same_order_each_time(name):
    documents = first(name)
    assert len(documents) == 40
    assert {document.domain for document in documents} == {name}
    assert first(name) == documents


def test_the_python_corpus_is_the_standard_library_without_tests_or_packages():
    names = [document.name for document in open_corpus("builtin:python")]
    assert {"argparse.py", "asyncio/base_events.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if "/tests/" in f"/{name}" or name.startswith(("test/", "site-packages/"))]


def test_no_generated_header_and_no_document_twice_is_in_the_cpp_corpus():
    documents = list(open_corpus("builtin:cpp"))
    assert "torch/include/c10/util/Exception.h" in {document.name for document in documents}
    assert not [d.name for d in documents if "/ATen/ops/" in d.name or "@generated" in d.text[:1000]]
    assert len({document.text for document in documents}) == len(documents)


def test_a_docstrings_document_holds_each_doc_string_of_its_module_once():
    (document,) = first("docstrings", 1)
    package = document.name.split("/")[0]
    source = Path(find_spec(package).origin).parent.parent / document.name
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    expected = {ast.get_docstring(node) for node in nodes if isinstance(node, kinds)} - {None, ""}
    assert all(text in document.text for text in expected)
    assert len(document.text) == sum(map(len, expected)) + 2 * (len(expected) - 1) + 1


def test_help_topics_and_readmes_are_reference_prose():
    names = {document.name for document in open_corpus("builtin:reference")}
    assert {"numpy/README", "torch/README"} <= names
    assert any(name.startswith("pydoc_data/topics.py#") for name in names)


def test_joined_names_read_one_after_another_and_all_is_the_four():
    joined = [document.domain for document in open_corpus("builtin:reference+python")]
    assert list(dict.fromkeys(joined)) == ["reference", "python"]
    assert BuiltinSource("all").identity() == BuiltinSource("+".join(NAMES)).identity()
    assert len({open_corpus(f"builtin:{name}").fingerprint for name in [*NAMES, "all"]}) == 5


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        PerplabError, match=r"unknown built-in corpus 'pyhton'.*python, reference, docstrings, cpp, all"
    ):
        open_corpus("builtin:pyhton")


def test_naming_and_fingerprinting_corpora_imports_nothing_heavy():
    code = (
        "import sys; from perplab.text import open_corpus; open_corpus('builtin:all').fingerprint;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'tokenizers', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_joined_corpora_take_turns_by_size():
    read, sizes = iter(BuiltinSource("python+reference").documents()), {"python": 0, "reference": 0}
    longest = 0
    for document in islice(read, 60):
        sizes[document.domain] += len(document.text)
        longest = max(longest, len(document.text))
        assert abs(sizes["python"] - sizes["reference"]) <= longest
