"""llama.cpp, by xllamacpp's wheel: log-probabilities of each continuation, and greedy ids.

Without flash attention, and with keys and values in fp32: by default both are rounded to fp16.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

job = json.loads(Path(sys.argv[1]).read_text())
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = job["gguf"], 512, 1
params.cpuparams.n_threads, params.warmup, params.verbosity = 1, False, -1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)


def post(path: str, **body: Any) -> Any:
    """The server's answer to a POST request."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), kind
    )
    return json.load(urllib.request.urlopen(request))


def logprobs(prompt: list[int]) -> list[float]:
    """Of every id after a prompt, from the model alone. The sampled piece must consist of whole
    characters, or the server would withhold them.
    """
    said = post(
        "/completion", prompt=prompt, n_predict=1, n_probs=job["vocabulary"], cache_prompt=True,
        temperature=0, logit_bias=[[job["ascii"], 1e4]],
    )  # fmt: skip
    by_id = {p["id"]: p["logprob"] for p in said["completion_probabilities"][0]["top_logprobs"]}
    return [by_id[i] for i in range(job["vocabulary"])]


ids, prompt = job["ids"], job["prompt"]
after = list(range(0, prompt, 12)) + list(range(prompt - 1, len(ids)))
rows = [logprobs(ids[: n + 1]) for n in after]
greedy = post(
    "/completion", prompt=ids[:prompt], n_predict=len(ids) - prompt, temperature=0,
    return_tokens=True, cache_prompt=False,
)  # fmt: skip
texts = [
    post("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
    for text in (job["text"], *job["texts"])
]
np.savez(
    sys.argv[2], after=after, logprobs=rows, greedy=greedy["tokens"], encoded=texts[0],
    texts=json.dumps(texts[1:]),
)  # fmt: skip
