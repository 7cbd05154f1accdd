"""Models out to other software, and other software's models in, a tensor at a time.

A model leaves as a Hugging Face folder (`export.export`): safetensors, config.json, tokenizer,
model card.

    names.py     our parameters <-> the tensors of Qwen3.5
    qwen3_5.py   our settings <-> its config.json
    folder.py    folders of safetensors, streamed      export.py   a checkpoint out
    engines.py   which engines read a shape            card.py     its model card
    load.py      a model from a run or an export
"""
