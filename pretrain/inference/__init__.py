"""Reading and writing with a trained model.

session.py    wake, sleep when the window is full, wake again; several sessions in one forward pass
decode.py     one token of each of them, made quick
memory.py     what a session keeps
sampling.py   which token comes next
text.py       tokens to text while they come
generate.py   continuations of a prompt
chat.py       messages as tokens: in plain text, or by a chat template
likelihood.py how likely a text is
store.py      sessions on disk
server/       OpenAI's APIs over HTTP
"""
