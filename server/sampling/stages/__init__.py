"""The sampling stages, in the order in which they change the scores: that of transformers' processors."""

from server.sampling.stage import Stage
from server.sampling.stages.allowed_tokens import AllowedTokens
from server.sampling.stages.bad_words import BadWords
from server.sampling.stages.logit_bias import LogitBias
from server.sampling.stages.min_new_tokens import MinNewTokens
from server.sampling.stages.no_repeat_ngram import NoRepeatNgram
from server.sampling.stages.penalties import Penalties
from server.sampling.stages.structured_outputs import StructuredOutputs
from server.sampling.stages.truncation import Truncation
from server.sampling.stages.typical import Typical

STAGES: list[type[Stage]] = [
    LogitBias,
    Penalties,
    NoRepeatNgram,
    BadWords,
    AllowedTokens,
    MinNewTokens,
    StructuredOutputs,
    # filters: for tokens that are drawn
    Truncation,
    Typical,
]
