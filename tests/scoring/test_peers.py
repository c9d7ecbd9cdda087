"""The conventions of other tools against the tools themselves, on the same weights and text."""

import ctypes
import math
import unicodedata

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.api.task import PerplexityTask
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from gguf_export import export_gguf
from perplab.models import LanguageModel, load
from perplab.scoring.perplexity import perplexity
from perplab.text import Document, open_corpus

BOS = "<|endoftext|>"


@pytest.fixture
def pocket():
    return load("pocket", dtype="float32")


@pytest.fixture
def pocket_that_begins_with_bos(pocket):
    pocket.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, pocket.tokenizer.bos_token_id)]
    )
    return pocket


@pytest.fixture(scope="module")
def documents():
    """Some prose and code, of which some documents have more tokens than a window and some begin oddly."""
    read = list(open_corpus("builtin:reference+docstrings+python", "heldout").limited(8_000))
    odd = ["", "a", " two  blanks\n\n", f"{BOS}spelled", f"spelled {BOS} inside", "naïve café 😀"]
    return [*read, *(Document(text, "odd", f"odd {number}") for number, text in enumerate(odd))]


def figures_of_lm_eval(language_model, documents):
    """Word perplexity, byte perplexity and bits per byte, as a perplexity task of lm-eval takes them."""
    model = HFLM(pretrained=language_model.model, tokenizer=language_model.tokenizer, batch_size=4)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(document.text,), idx=index)
        for index, document in enumerate(documents)
    ]
    found = model.loglikelihood_rolling(requests, disable_tqdm=True)
    by_words = [(nats, PerplexityTask.count_words(d.text)) for nats, d in zip(found, documents, strict=True)]
    by_bytes = [(nats, PerplexityTask.count_bytes(d.text)) for nats, d in zip(found, documents, strict=True)]
    return weighted_perplexity(by_words), weighted_perplexity(by_bytes), bits_per_byte(by_bytes)


@pytest.mark.parametrize("model", ["pocket", "pocket_that_begins_with_bos"])
def test_lm_eval_itself_gives_the_same_figures(model, documents, request):
    language_model = request.getfixturevalue(model)
    ours = perplexity(language_model, documents, convention="lm-eval")
    theirs = figures_of_lm_eval(language_model, documents)
    assert (ours.value, ours.byte_perplexity, ours.bits_per_byte) == pytest.approx(theirs, rel=1e-5)


def test_lm_eval_itself_gives_the_same_figures_for_a_tokenizer_without_bos(tiny_model, tiny_tokenizer):
    language_model = LanguageModel(tiny_model("gpt2"), tiny_tokenizer)
    language_model.model.config.n_positions = 16
    documents = [Document(text, "d", text) for text in ("one", "the cat sat on the mat, the rat ran", "", "x = 1")]
    ours = perplexity(language_model, documents, convention="lm-eval")
    theirs = figures_of_lm_eval(language_model, documents)
    assert (ours.value, ours.byte_perplexity, ours.bits_per_byte) == pytest.approx(theirs, rel=1e-5)


class LlamaCpp:
    """A GGUF model behind the C interface of llama.cpp, with what its perplexity tool does with it."""

    def __init__(self, library, path, length):
        self.library, self.length = library, length
        library.llama_backend_init()
        options = library.llama_model_default_params()
        self.model = library.llama_model_load_from_file(str(path).encode(), options)
        options = library.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = length
        options.n_threads = options.n_threads_batch = 1
        self.context = library.llama_init_from_model(self.model, options)
        self.vocabulary = library.llama_model_get_vocab(self.model)

    def tokens(self, text):
        """The text as the tool reads it: bos where the model wants one, special spellings as text."""
        raw = text.encode()
        found = (ctypes.c_int32 * (len(raw) + 2))()
        number = self.library.llama_tokenize(self.vocabulary, raw, len(raw), found, len(found), True, False)
        return list(found[:number])

    def logits(self, window):
        batch = self.library.llama_batch_init(len(window), 0, 1)
        batch.n_tokens = len(window)
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, True
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        assert self.library.llama_decode(self.context, batch) == 0
        self.library.llama_batch_free(batch)
        size = self.library.llama_vocab_n_tokens(self.vocabulary)
        found = self.library.llama_get_logits(self.context)
        return np.ctypeslib.as_array(found, (len(window), size)).astype(np.float64)

    def perplexity(self, tokens):
        """Second halves of whole windows, whose first token is bos where the model wants one."""
        wants_bos = self.library.llama_vocab_get_add_bos(self.vocabulary)
        bos = self.library.llama_vocab_bos(self.vocabulary)
        costs = []
        for begin in range(0, len(tokens) - self.length + 1, self.length):
            window = tokens[begin : begin + self.length]
            logits = self.logits([bos, *window[1:]] if wants_bos else window)
            for place in range(self.length // 2, self.length - 1):
                highest = logits[place].max()
                sum_of_others = np.exp(logits[place] - highest).sum()
                costs.append(highest + math.log(sum_of_others) - logits[place, window[place + 1]])
        return math.exp(np.mean(costs))

    def close(self):
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)


@pytest.fixture(scope="module")
def file_text():
    """Text without what the nearest pre-tokenizer of llama.cpp cuts otherwise: contractions and combining marks."""
    read = open_corpus("builtin:reference+docstrings+python", "heldout").limited(40_000)
    text = (
        "\n".join(document.text for document in read).replace("'", '"').replace("\N{RIGHT SINGLE QUOTATION MARK}", '"')
    )
    return "".join(character for character in text if not unicodedata.category(character).startswith("M"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pocket", "pocket_that_begins_with_bos"])
def test_llama_cpp_itself_gives_the_same_perplexity(model, file_text, tmp_path, request):
    library = pytest.importorskip("llama_cpp.llama_cpp")
    language_model = request.getfixturevalue(model)
    path = tmp_path / "pocket.gguf"
    export_gguf(language_model, path)
    peer = LlamaCpp(library, path, length=512)
    tokens = peer.tokens(file_text.removesuffix("\n"))  # its -f takes the last line end off
    assert tokens == language_model.tokenizer(file_text.removesuffix("\n")).input_ids
    ours = perplexity(language_model, [Document(file_text, "file", "file")], convention="llamacpp")
    assert ours.num_tokens == len(tokens) // 512 * 255
    assert ours.value == pytest.approx(peer.perplexity(tokens), rel=1e-4)
    peer.close()
