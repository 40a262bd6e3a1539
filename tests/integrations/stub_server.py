"""A stand-in for a vLLM server: `python stub_server.py PORT`. It answers as vLLM does, with random tokens."""

import json
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tokenizers import Tokenizer

POLICY = Path(__file__).parents[2] / "vine_mini/app/policies/arithmetic"
TOKENIZER = Tokenizer.from_file(str(POLICY / "tokenizer.json"))
END = json.loads((POLICY / "config.json").read_text())["eos_token_id"]


def completions(asked) -> dict:
    choices = []
    for prompt in asked["prompt"]:
        for _ in range(asked["n"]):
            ids = [*random.choices(range(5, 90), k=random.randint(4, 12)), END]
            logprobs = dict(
                tokens=[f"token_id:{i}" for i in ids], token_logprobs=[-1.0] * len(ids), top_logprobs=[None] * len(ids)
            )
            choices.append(dict(prompt_token_ids=prompt, token_ids=ids, logprobs=logprobs))
    return {"choices": choices}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.answer({
            "/health": {},
            "/v1/models": {"data": [{"id": "stand-in"}]},
            "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": "processed_logprobs"}}},
        }.get(path))  # fmt: skip

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if self.path == "/tokenize":
            self.answer({"tokens": TOKENIZER.encode(asked["prompt"]).ids, "max_model_len": 1000})
        elif self.path == "/v1/completions":
            self.answer(completions(asked))
        else:
            self.answer({"success": True} if self.path.startswith("/reset_prefix_cache") else None)

    def answer(self, body):
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
