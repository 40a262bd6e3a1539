"""vLLM on prefixes from a JSON file. `benchmarks.rollouts` starts this file in an environment with vLLM and talks to it.

The file prints "ready" when the model is loaded. Then it prints one line of JSON for each line that it reads from stdin.
"""

import json
import os
import sys
import time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="2", VLLM_CPU_OMP_THREADS_BIND=job["cores"], VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1"
)
os.environ["OMP_NUM_THREADS"] = str(job["threads"])


def main():
    """Loads the model, then samples all rollouts each time a line comes in."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=job["folder"],
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        max_model_len=job["longest"],
        max_num_seqs=1024 if job["gpu"] else 256,
        enable_prefix_caching=True,
        enforce_eager=not job["compiled"],
        **({"gpu_memory_utilization": 0.4} if job["gpu"] else {}),  # the process that asks holds some of the memory
    )
    prefixes = [{"prompt_token_ids": ids} for ids in job["prefixes"]]
    common = dict(n=job["k"], temperature=1.0, stop_token_ids=job["eos"], detokenize=False)
    params = [SamplingParams(max_tokens=budget, **common) for budget in job["budgets"]]
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        done = llm.generate(prefixes, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        print(json.dumps([sum(len(o.token_ids) for r in done for o in r.outputs), seconds]), flush=True)


if __name__ == "__main__":
    main()
