"""perplab as a model of lm-evaluation-harness: `--model perplab --model_args pretrained=FOLDER,dtype=bfloat16`.

Decisions:
- Tokens, truncation and windows are those of lm-eval's `hf` backend, so its numbers are too; what differs is how they
  are computed. Log-probabilities are taken in float32 whatever the model computes in, so in bfloat16 they are the more
  exact ones.
- A pair of context and continuation is encoded as one text and cut after as many tokens as the context has by itself;
  white space that ends the context goes to the continuation first. What exceeds the model's positions is cut from the
  left. Text that spells a special token stands for it, because chat templates do.
- lm-eval's `batch_size` counts rows, and the engine has none: it takes a number of tokens, `batch_tokens`.
- Sampling draws from torch's global generator, which lm-eval seeds with `--seed`.

lm-eval finds this class through the entry point `lm_eval.models`; releases up to 0.4.13 have no such thing, and with
them `python -m perplab.evaluation` takes the place of the command `lm_eval`, with the same arguments.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from perplab.errors import PerplabError
from perplab.evaluation.stop_strings import continue_until
from perplab.models import LanguageModel, load
from perplab.scoring.conventions import CONVENTIONS, max_length_of, plan
from perplab.scoring.engine import score_requests
from perplab.scoring.requests import Request, TokenIds
from perplab.text import Document, boundary_tokens, text_encoder, tokenizer_fingerprint

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_GEN_TOKS = 256
"""Longest continuation where a task sets none: lm-eval's own default."""
_NAMES_OF_MAX_GEN_TOKS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Encode = Callable[[Sequence[str], bool], list[TokenIds]]


@register_model("perplab")
class PerplabLM(TemplateLM):
    """A causal language model whose log-likelihoods come from perplab's engine.

    Args:
        pretrained: folder, hub id or `pocket`; or a model that is loaded already.
        dtype: of the weights, as for `perplab.load`.
        device: where to compute; `cpu` in place of a CUDA device where there is none.
        max_length: most tokens the model reads at once; its positions by default.
        batch_tokens: tokens that go through the model at once; the engine's and the generator's choice by default.
        batch_size: taken and not used.
        max_batch_size: taken and not used.

    Raises:
        PerplabError: as for `perplab.load`.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        max_length: int | None = None,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            pretrained = load(pretrained, dtype=dtype, device=_there(device))
        self.language_model = pretrained
        self.tokenizer = self.language_model.tokenizer
        self.max_length = max_length or max_length_of(self.language_model)
        self._batch_tokens = batch_tokens
        self._device = self.language_model.model.device
        self._encoder = text_encoder(self.tokenizer)
        self._encoder.encode_special_tokens = False

    @property
    def eot_token_id(self) -> int:
        """The token that ends documents."""
        return boundary_tokens(self.tokenizer)[1]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that nothing else precedes."""
        return boundary_tokens(self.tokenizer)[0]

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keys its cache of prompts by."""
        return tokenizer_fingerprint(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text."""
        (ids,) = self._encode([string], add_special_tokens is not False)
        return [int(token) for token in ids]

    def loglikelihood(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding gives it.

        Raises:
            PerplabError: a continuation is empty or does not fit the model's positions, or a cost is not finite.
        """
        pairs = [(context, continuation) for context, continuation in (request.args for request in requests)]
        encoded = encode_pairs(pairs, self._encode, self.prefix_token_id)
        return self._loglikelihood_tokens(
            [(pair, *ids) for pair, ids in zip(pairs, encoded, strict=True)], disable_tqdm=disable_tqdm
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], TokenIds, TokenIds]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._fitted(pair, context, continuation) for pair, context, continuation in requests]
        order = sorted(range(len(asked)), key=lambda index: asked[index].input_ids.tobytes())  # neighbours share most
        scores = score_requests(
            self.language_model,
            (asked[index] for index in order),
            ("nll", "top_token"),
            batch_tokens=self._batch_tokens,
        )
        answers = [(0.0, False)] * len(asked)
        for index in tqdm(order, desc="loglikelihood", disable=disable_tqdm):
            found = next(scores)
            is_greedy = bool((found["top_token"] == asked[index].continuation).all())
            answers[index] = (-float(found["nll"].sum(dtype=np.float64)), is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return answers

    def loglikelihood_rolling(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows where it is longer than the model's positions.

        Raises:
            PerplabError: no text has a token, or a cost is not finite.
        """
        texts = [request.args[0] for request in requests]
        documents = [Document(text, "text", f"request {number}") for number, text in enumerate(texts)]
        planned = list(plan(CONVENTIONS["lm-eval"], self.tokenizer, documents, self.max_length))
        windows = (window for document in planned for window in document.requests)
        scores = score_requests(self.language_model, windows, batch_tokens=self._batch_tokens)
        answers = []
        for text, document in zip(texts, tqdm(planned, desc="rolling", disable=disable_tqdm), strict=True):
            nats = [next(scores)["nll"].sum(dtype=np.float64) for _ in document.requests]
            answers.append(-float(sum(nats)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def generate_until(self, requests: Sequence["Instance"], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings.

        Raises:
            PerplabError: the longest continuation leaves no room for a context.
        """
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="generate", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                contexts = [requests[number].args[0] for number in numbers]
                for place, text in self._continued(contexts, dict(requests[numbers[0]].args[1])):
                    answers[numbers[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[numbers[place]].args, text)
                    bar.update()
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text the model was trained to continue."""
        rendered: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return rendered

    def _continued(self, contexts: Sequence[str], asked: dict[str, Any]) -> Iterable[tuple[int, str]]:
        stop = asked.pop("until", None) or []
        lengths = [asked.pop(name, None) for name in _NAMES_OF_MAX_GEN_TOKS]
        max_gen_toks = int(next((length for length in lengths if length is not None), MAX_GEN_TOKS))
        if max_gen_toks >= self.max_length:
            raise PerplabError(
                f"continuations of {max_gen_toks} tokens leave no room in the model's {self.max_length} positions",
                "lower max_gen_toks, for example with --gen_kwargs max_gen_toks=64",
            )
        prompts = [ids[-(self.max_length - max_gen_toks) :] for ids in self._encode(contexts, True)]
        return continue_until(
            self.language_model,
            [prompt if len(prompt) else np.array([self.prefix_token_id]) for prompt in prompts],
            [stop] if isinstance(stop, str) else stop,
            max_gen_toks,
            batch_tokens=self._batch_tokens,
            **_sampling(asked),
        )

    def _fitted(self, pair: tuple[str, str], context: TokenIds, continuation: TokenIds) -> Request:
        """The request, its context cut from the left to what the model has positions for."""
        if not 0 < len(continuation) <= self.max_length:
            raise PerplabError(
                f"{pair[1][:40]!r} after {pair[0][-40:]!r} has {len(continuation)} tokens of its own; "
                f"the model has {self.max_length} positions",
                "let continuations begin with white space, and keep them shorter than the positions",
            )
        return Request(context[-(self.max_length + 1 - len(continuation)) :], continuation)

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[TokenIds]:
        """Token ids of texts; a text that begins with the prefix token's own spelling gets no special tokens."""
        prefix = self.tokenizer.decode([self.prefix_token_id])
        adding = [add_special_tokens and not text.startswith(prefix) for text in texts]
        found: dict[int, TokenIds] = {}
        for adds in set(adding):
            numbers = [number for number, this in enumerate(adding) if this == adds]
            encodings = self._encoder.encode_batch_fast([texts[number] for number in numbers], add_special_tokens=adds)
            found |= {
                number: np.array(encoding.ids, dtype=np.int32)
                for number, encoding in zip(numbers, encodings, strict=True)
            }
        return [found[number] for number in range(len(texts))]


def _there(device: str) -> str:
    """The device, or the CPU: lm-eval asks for cuda:0 where its user names nothing."""
    return device if torch.cuda.is_available() or not device.startswith("cuda") else "cpu"


def encode_pairs(
    pairs: Sequence[tuple[str, str]], encode: Encode, prefix_token: int
) -> list[tuple[TokenIds, TokenIds]]:
    """Context and continuation of each pair as lm-eval cuts them.

    Args:
        pairs: texts. Pairs that share a context share its encoding.
        encode: texts and whether to add the tokenizer's special tokens, to ids.
        prefix_token: the context of a continuation that has none.
    """
    moved = [_with_white_space_moved(context, continuation) for context, continuation in pairs]
    contexts = list(dict.fromkeys(context for context, _ in moved if context))
    context_ids = dict(zip(contexts, encode(contexts, True), strict=True))
    wholes = iter(encode([context + continuation for context, continuation in moved if context], True))
    alone = iter(encode([continuation for context, continuation in moved if not context], False))
    encoded = []
    for context, _ in moved:
        if context:
            encoded.append((context_ids[context], next(wholes)[len(context_ids[context]) :]))
        else:
            ids = next(alone)
            begins_with_prefix = len(ids) > 0 and ids[0] == prefix_token
            encoded.append((np.array([prefix_token], dtype=np.int32), ids[1:] if begins_with_prefix else ids))
    return encoded


def _with_white_space_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _sampling(asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `model.generate` for a task's: greedy, unless it asks for sampling or a temperature above 0."""
    temperature = asked.pop("temperature", None)
    do_sample = asked.pop("do_sample", None)
    if do_sample is None:
        do_sample = bool(temperature)
    if not do_sample or temperature == 0:
        return {**asked, "do_sample": False}
    return {**asked, "do_sample": True, "temperature": float(temperature or 1.0)}
