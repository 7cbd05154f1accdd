"""Text to token ids and back, exactly: by a tokenizer of ours, or one that came with a model.

    train.py                a sentencepiece BPE model with byte fallback from any documents
    encode.py               Tokenizer: load, encode, decode, fingerprint; for either kind of pieces
    sentencepiece_model.py  the pieces of a sentencepiece model, ours or another's
    fast_model.py           the pieces of a tokenizer.json
    foreign.py              a Hugging Face folder's tokenizer: its files, and what they mean
    export.py               export to the Hugging Face fast format, with a report on equality
    hub.py                  a hint if a path looks like a name on the Hugging Face Hub
    cut.py                  where a text may be cut without changing its tokens
    files.py                atomic file writes
    seal.py                 a checksum in the model file, to detect damage
    errors.py               errors that a user can fix

decode(encode(text)) returns every string of Unicode scalar values unchanged, whatever the tokenizer
was trained on: nothing is normalised, no space is added or dropped, characters without a piece
become bytes, and text that looks like a special token ("</s>") is ordinary text.
"""

from tokenizer.errors import TokenizerError

__all__ = ["TokenizerError"]
