"""Models out to other software, and other software's models in, a tensor at a time.

A model leaves as a Hugging Face folder (`export.export`): safetensors, config.json, tokenizer,
model card. A GGUF file is written from such a folder, never from a checkpoint. A folder comes in as
a run at step 0 (`into_run.import_folder`).

    names.py     our parameters <-> Qwen3.5's          qwen3_5.py       settings <-> its config.json
    export.py    a checkpoint out                      card.py          its model card
    gguf.py      the folder as a GGUF file             engines.py       who reads it, and why not
    into_run.py  a folder in, as a run                 transformer.py   attention-only models in
    load.py      a model from a run or an export       folder.py        safetensors, streamed
    vocabulary.py   a tokenizer as a GGUF file says it
"""
