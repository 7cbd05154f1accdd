"""mistral.rs: the twenty best log-probabilities after some prompts, and a greedy continuation.

It takes texts, not ids, and gives log-probabilities only for chat requests; the template is the
text itself.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["MISTRALRS_CPU_KV_F32"] = "1"  # otherwise keys and values are rounded to fp16
from mistralrs import ChatCompletionRequest, ModelDType, Runner, Which

job = json.loads(Path(sys.argv[1]).read_text())
template = sys.argv[2] + ".jinja"
with open(template, "w") as file:
    file.write("{% for message in messages %}{{ message['content'] }}{% endfor %}")
runner = Runner(
    Which.Plain(model_id=job["folder"], dtype=ModelDType.F32), max_seqs=1, no_paged_attn=True,
    prefix_cache_n=0, jinja_explicit=template,
)  # fmt: skip


def ask(text: str, tokens: int) -> Any:
    """Requests a completion; returns its first choice."""
    messages = [{"role": "user", "content": text}]
    request = ChatCompletionRequest(
        messages, model="default", max_tokens=tokens, temperature=0.0, logprobs=True,
        top_logprobs=20,
    )  # fmt: skip
    return runner.send_chat_completion_request(request).choices[0]


rows = np.full((len(job["prefixes"]), job["vocabulary"]), np.nan)
for row, (_, text) in zip(rows, job["prefixes"], strict=True):
    for top in ask(text, 1).logprobs.content[0].top_logprobs:
        row[top.token] = top.logprob
written = ask(job["text"], len(job["ids"]) - job["prompt"]).message.content
np.savez(sys.argv[2], after=[end for end, _ in job["prefixes"]], logprobs=rows, written=written)
