"""Export to and import from other software, one tensor at a time.

A model is exported as a Hugging Face folder (`export.export`): safetensors, config.json, tokenizer,
model card. A GGUF file is written from such a folder, never from a checkpoint. A folder is imported
as a run at step 0 (`into_run.import_folder`).

    names.py     our parameters <-> Qwen3.5's          qwen3_5.py       settings <-> its config.json
    export.py    checkpoint -> Hugging Face folder     card.py          its model card
    gguf.py      Hugging Face folder -> GGUF           engines.py       which engines can read it
    into_run.py  Hugging Face folder -> run            transformer.py   import of Llama and the like
    load.py      a model from a run or an export       folder.py        safetensors, streamed
    vocabulary.py   a tokenizer in GGUF's terms
"""
