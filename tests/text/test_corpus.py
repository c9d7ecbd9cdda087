import gzip
import json
import os
import sys
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perplab.errors import PerplabError
from perplab.text import is_heldout, open_corpus
from perplab.text.files import PASSAGE_BYTES

ROWS = [
    {"text": "first\r\nrow", "domain": "prose"},
    {"text": "größer", "domain": None},
    {"text": ""},
    {"text": "last", "domain": "code", "other": 3},
]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read(spec, split="all"):
    return [(document.text, document.domain, document.name) for document in open_corpus(str(spec), split)]


def zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


# the split


@given(st.text())
def test_the_heldout_side_is_the_lowest_twentieth_of_the_hash(text):
    value = int(blake2b(text.encode(), digest_size=8).hexdigest(), 16)
    assert is_heldout(text) == (value / 2**64 < 0.05)


def test_both_sides_together_are_the_whole_and_about_a_twentieth_is_heldout(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl([{"text": f"row {number}"} for number in range(4000)]))
    train, heldout, everything = (read(path, split) for split in ("train", "heldout", "all"))
    assert sorted(train + heldout) == sorted(everything)
    assert 0.035 < len(heldout) / 4000 < 0.065


def test_an_unknown_split_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    corpus = open_corpus(str(tmp_path / "a.txt"))
    with pytest.raises(PerplabError, match="train, heldout, all"):
        corpus.in_split("test")


# plain text


@given(st.integers(0, 3 * PASSAGE_BYTES), st.integers(1, 3000), st.sampled_from(["\n", "\r\n"]))
def test_passages_concatenate_to_the_exact_text(tmp_path_factory, size, width, line_end):
    path = tmp_path_factory.getbasetemp() / "long.txt"
    line = "é" * width + line_end
    text = "x" + line * (size // len(line.encode()))
    path.write_bytes(text.encode())
    documents = list(open_corpus(str(path)))
    assert "".join(document.text for document in documents) == text
    if len(text.encode()) > PASSAGE_BYTES:
        assert all(document.text.endswith("\n") for document in documents[:-1])
        assert all(len(d.text.encode()) <= PASSAGE_BYTES + len(line.encode()) for d in documents)
        assert [document.name for document in documents] == [f"long.txt#{at + 1}" for at in range(len(documents))]
    else:
        assert [(document.name, document.domain) for document in documents] == [("long.txt", "long")]


@pytest.mark.parametrize("before", [3, 5 * PASSAGE_BYTES])
def test_bytes_that_are_not_utf8_are_named_with_file_and_offset(tmp_path, before):
    path = tmp_path / "latin.txt"
    path.write_bytes((b"abcdefg\n" * before)[:before] + b"\xe9\n" + b"tail\n" * 10)
    with pytest.raises(PerplabError, match=rf"latin\.txt is not UTF-8 at byte {before}: .*iconv"):
        read(path)


# records


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_record_format_gives_the_same_documents(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    data = jsonl(ROWS)
    if ending == ".parquet":
        parquet(path, {column: [row.get(column) for row in ROWS] for column in ("text", "other", "domain")})
    else:
        cut = len(data) // 2
        pack = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstd}[ending]
        path.write_bytes(pack(data[:cut]) + pack(data[cut:]))  # two members, as parallel compressors write
    name = path.name
    assert read(path) == [
        ("first\r\nrow", "prose", f"{name}#1"),
        ("größer", "rows", f"{name}#2"),
        ("last", "code", f"{name}#4"),
    ]


def test_lines_longer_than_a_chunk_and_blank_lines_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a" * 3_000_000}, {"text": "b"}, {"text": "c" * 1_500_000}]
    path.write_bytes(jsonl(rows).replace(b"\n", b"\n\n").rstrip())
    assert [text for text, _, _ in read(path)] == [row["text"] for row in rows]


@pytest.mark.parametrize("line", ['{"text": "a"', "[1]", '{"text": NaN,}'])
def test_a_malformed_json_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(PerplabError, match=r"rows\.jsonl line 2 is not a JSON object"):
        read(path)


def test_a_record_without_text_names_the_columns_there_are(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"content": "a", "label": 1}\n')
    parquet(tmp_path / "rows.parquet", {"content": ["a"], "label": [1]})
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(PerplabError, match="columns: content, label"):
            read(tmp_path / name)
    (tmp_path / "numbers.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(PerplabError, match="as a string"):
        read(tmp_path / "numbers.jsonl")


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("damage", ["cut", "rubbish", "empty"])
def test_a_damaged_file_is_named(tmp_path, ending, damage):
    path = tmp_path / f"rows{ending}"
    rows = [{"text": f"row {number}"} for number in range(1000)]
    if ending == ".parquet":
        parquet(path, {"text": [row["text"] for row in rows]})
    else:
        path.write_bytes((gzip.compress if ending == ".jsonl.gz" else zstd)(jsonl(rows)))
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-20], "rubbish": b"rubbish" * 20, "empty": b""}[damage])
    with pytest.raises(PerplabError, match=rf"rows\{ending}"):
        read(path)


def test_zstd_without_its_package_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(PerplabError, match="pip install zstandard"):
        read(tmp_path / "rows.jsonl.zst")


def test_half_a_surrogate_pair_is_named_with_its_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "good \\ud83d\\ude00"}\n{"text": "bad \\ud83d"}\n')
    with pytest.raises(PerplabError, match=r"surrogate pair at character 4 of rows\.jsonl#2"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "domain"), [("v1.2-web.jsonl.gz", "v1.2-web"), ("v1.2-web.txt", "v1.2-web"), ("README", "README")]
)
def test_the_domain_of_a_file_is_its_stem(tmp_path, name, domain):
    data = jsonl([{"text": "a"}])
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert [document.domain for document in open_corpus(str(tmp_path / name))] == [domain]


# folders


@pytest.fixture
def folder(tmp_path):
    for name, text in {
        "b.py": "x = 1\n",
        "a.md": "# a\n",
        "books/deep/one.txt": "one",
        "books/two.PY": "y = 2\n",
        "image.png": "no text",
        ".git/config.txt": "hidden",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS))
    return tmp_path


def test_a_folder_is_read_in_order_with_subfolder_or_suffix_as_domain(folder):
    assert read(folder) == [
        ("# a\n", "md", "a.md"),
        ("x = 1\n", "py", "b.py"),
        ("one", "books", "books/deep/one.txt"),
        ("y = 2\n", "books", "books/two.PY"),
        ("first\r\nrow", "prose", "rows.jsonl#1"),
        ("größer", "jsonl", "rows.jsonl#2"),
        ("last", "code", "rows.jsonl#4"),
    ]


def test_patterns_choose_the_files_of_a_folder(folder):
    assert [name for _, _, name in read(f"{folder}:*.py,*.png")] == ["b.py", "books/two.PY", "image.png"]
    with pytest.raises(PerplabError, match=r"no file named like \*\.rs"):
        open_corpus(f"{folder}:*.rs")


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(PerplabError, match="does not exist"):
        open_corpus(str(tmp_path / "missing.txt"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(PerplabError, match="no document"):
        read(tmp_path / "empty.txt")


# fingerprints and limits


def test_the_fingerprint_follows_content_split_and_limit_and_reads_nothing(folder):
    corpus = open_corpus(str(folder))
    assert corpus.fingerprint == open_corpus(str(folder)).fingerprint
    seen = {corpus.fingerprint, corpus.in_split("train").fingerprint, corpus.limited(5).fingerprint}
    os.utime(folder / "b.py", ns=(1, 1))
    seen.add(corpus.fingerprint)
    (folder / "c.py").write_bytes(b"\xff is never decoded")
    seen.add(open_corpus(str(folder)).fingerprint)
    assert len(seen) == 5


@given(st.integers(1, 60))
def test_a_limited_corpus_is_the_shortest_beginning_that_reaches_the_limit(tmp_path_factory, limit):
    path = tmp_path_factory.getbasetemp() / "limited.jsonl"
    path.write_bytes(jsonl([{"text": "ab é"}] * 10))
    sizes = [len(document.text.encode()) for document in open_corpus(str(path)).limited(limit)]
    assert sum(sizes) >= min(limit, 50)
    assert sum(sizes[:-1]) < limit


# data sets


def test_a_local_data_set_streams_with_its_domains(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl([{"text": "one", "domain": "d"}, {"text": "two", "domain": None}]))
    expected = [("one", "d", "rows#1"), ("two", "rows", "rows#2")]
    for spec in (f"hf:{folder}", f"hf:{folder}:train", f"hf:{folder}/default:train"):
        assert read(spec) == expected
    before = open_corpus(f"hf:{folder}").fingerprint
    assert before == open_corpus(f"hf:{folder}").fingerprint
    (folder / "train.jsonl").write_bytes(jsonl([{"text": "three"}]))
    assert before != open_corpus(f"hf:{folder}").fingerprint
    with pytest.raises(PerplabError, match="split 'test'"):
        read(f"hf:{folder}:test")


def test_a_name_with_too_many_parts_is_refused():
    with pytest.raises(PerplabError, match="hf:ORG/NAME/CONFIG"):
        open_corpus("hf:a/b/c/d")
