"""Text to token ids and back, exactly: by a tokenizer of ours, or one that came with a model.

    train.py                a sentencepiece BPE model with byte fallback from any documents
    encode.py               Tokenizer: load, encode, decode, fingerprint; for either kind of pieces
    sentencepiece_model.py  the pieces of a sentencepiece model, ours or another's
    fast_model.py           the pieces of a tokenizer.json
    foreign.py              a Hugging Face folder's tokenizer: its files, and what they mean
    export.py               ours as a Hugging Face fast tokenizer, and a report on whether it is
    hub.py                  what to do about a name of the Hugging Face Hub
    cut.py                  where a text may be cut without changing its tokens
    files.py                writing a file whole or not at all
    seal.py                 a checksum in the model file, by which damage is found
    errors.py               what a user's error is here

Every string of Unicode scalar values comes back from decode(encode(text)) unchanged, whatever text
the tokenizer was trained on: nothing is normalised, no space is added or dropped, what has no piece
becomes bytes, and text that looks like a special token ("</s>") is ordinary text.
"""

from tokenizer.errors import TokenizerError

__all__ = ["TokenizerError"]
