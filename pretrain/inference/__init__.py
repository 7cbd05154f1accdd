"""Inference with a trained model: sessions that read, sleep and write.

session.py    wake, sleep when the window is full, wake again; several sessions in one forward pass
decode.py     a fast path for one token of each session
memory.py     what a session keeps
sampling.py   how the next token is chosen
text.py       incremental detokenisation
generate.py   continuations of a prompt
chat.py       messages as tokens: in plain text, or by a chat template
likelihood.py log-likelihoods of texts, for evaluation harnesses
store.py      sessions on disk
server/       OpenAI's APIs over HTTP
"""
