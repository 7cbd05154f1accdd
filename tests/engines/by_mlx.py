"""mlx-lm: log-probabilities after each token; after the prompt one by one, with its cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

job = json.loads(Path(sys.argv[1]).read_text())
mx.set_default_device(mx.cpu)
mx.disable_compile()  # otherwise it runs a C++ compiler for half a minute
override = {"model_type": "qwen3_5", "full_attention_interval": job["interval"]}
model, tokenizer = mlx_lm.load(job["folder"], model_config=override)
cache, ids, prompt = make_prompt_cache(model), job["ids"], job["prompt"]
pieces = [ids[:prompt], *([i] for i in ids[prompt:])]
logits = np.concatenate([np.array(model(mx.array([p]), cache=cache)[0]) for p in pieces])
shift = logits.max(axis=1, keepdims=True)
logprobs = logits - shift - np.log(np.exp(logits - shift).sum(axis=1, keepdims=True))
encoded = tokenizer.encode(job["text"], add_special_tokens=False)
np.savez(sys.argv[2], after=np.arange(len(ids)), logprobs=logprobs, encoded=encoded)
