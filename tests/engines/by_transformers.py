"""transformers: log-probabilities after each token; after the prompt one by one, with its cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

job = json.loads(Path(sys.argv[1]).read_text())
model = AutoModelForCausalLM.from_pretrained(job["folder"])
cache, ids, prompt = DynamicCache(config=model.config), job["ids"], job["prompt"]
logits = []
with torch.inference_mode():
    for piece in [ids[:prompt], *([i] for i in ids[prompt:])]:
        logits.append(model(torch.tensor([piece]), past_key_values=cache).logits[0])
logprobs = torch.log_softmax(torch.cat(logits), dim=-1).numpy()
encoded = AutoTokenizer.from_pretrained(job["folder"]).encode(job["text"])
np.savez(sys.argv[2], after=np.arange(len(ids)), logprobs=logprobs, encoded=encoded)
