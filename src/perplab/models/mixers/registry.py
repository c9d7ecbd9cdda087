"""The token mixers a decoder can be made of, by name."""

from perplab.models.mixers.complex import ComplexAttention
from perplab.models.mixers.deltanet import DeltaNet
from perplab.models.mixers.linear import LinearAttention, Retention
from perplab.models.mixers.lstm import LSTM
from perplab.models.mixers.softmax import SlidingAttention, SoftmaxAttention
from perplab.models.mixers.token_mixer import TokenMixer

TOKEN_MIXERS: dict[str, type[TokenMixer]] = {
    "softmax": SoftmaxAttention,
    "sliding": SlidingAttention,
    "deltanet": DeltaNet,
    "linear": LinearAttention,
    "retnet": Retention,
    "complex": ComplexAttention,
    "lstm": LSTM,
}
