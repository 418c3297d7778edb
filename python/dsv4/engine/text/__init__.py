"""Everything between text and token ids, for one checkpoint's format. No torch.

ChatRequest ──render──▶ RenderedChat ──▶ the engine ──▶ token ids ──AnswerReader──▶ Piece
              │                                                        │
    turns ▶ encoding ▶ Tokenizer                     Detokenizer ▶ Markup ▶ StopMatcher
    (messages) (segments) (ids)                         (text)  (reasoning, calls)  (content)
"""

from dsv4.engine.text.answer import AnswerReader, Piece
from dsv4.engine.text.detokenize import Detokenizer
from dsv4.engine.text.encoding import encode
from dsv4.engine.text.render import render
from dsv4.engine.text.stops import StopMatcher
from dsv4.engine.text.tokenizer import Tokenizer

__all__ = ["AnswerReader", "Detokenizer", "Piece", "StopMatcher", "Tokenizer", "encode", "render"]
