"""The requests of a chunk as tensors, so that all of them are updated at once."""

import torch

from vine_mini.sampling.plain import Request, choose
from vine_mini.types import Sampling


class Table:
    """What R requests ask for and what they have sampled. A token's position counts from the first token of its trunk.

    Row R is a spare row. It is always done. Tensors of fixed size point to it where they have more places than requests.

    Attributes, each with R + 1 rows:
        trunk, start, budget: the fields of `Request`.
        branch: the position of the request's first own token. The tokens before it are the trunk's tokens.
        length: the number of sampled tokens.
        tokens, logprobs: [R + 1, longest budget] the sampled tokens and their log-probs.
        finished: whether the request sampled an end token.
    """

    def __init__(self, requests: list[Request], uniforms, sampling: Sampling, device):
        columns = zip(*[(r.trunk, r.start, r.budget) for r in requests], (-1, 1, 0), strict=True)
        self.trunk, self.start, self.budget = (torch.tensor(column, device=device) for column in columns)
        self.uniforms = torch.cat([uniforms, uniforms[:1]]).to(device)  # [R + 1, longest budget]
        self.spare = len(requests)
        self.sampling, self.eos = sampling, torch.tensor(sampling.eos_token_id, device=device)
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)
        self.length = torch.zeros_like(self.start)
        self.branch = self.start.clone()
        self.finished = torch.zeros_like(self.start, dtype=torch.bool)

    def newest(self, rows):
        """The last sampled token of each of these requests. rows [n] -> [n]"""
        return self.tokens[rows, self.length[rows] - 1]

    def write(self, rows, logits) -> None:
        """Samples the next token of these requests. rows [n], logits [n, V]"""
        place = self.length[rows]
        token, logprob = choose(logits, self.uniforms[rows, place], self.sampling.temperature, self.sampling.top_p)
        self.tokens[rows, place], self.logprobs[rows, place] = token, logprob
        self.finished[rows] = (token[:, None] == self.eos).any(dim=1)
        self.length[rows] += 1
        self.length[self.spare] = 0

    def done(self, rows):
        """Whether each of these requests is done. rows [n] -> [n]"""
        return self.finished[rows] | (self.length[rows] >= self.budget[rows])

    def results(self) -> list[tuple[list[int], list[float], bool]]:
        """For each request the token ids, their log-probs, and whether it sampled an end token."""
        columns = self.tokens.tolist(), self.logprobs.tolist(), self.length.tolist(), self.finished.tolist()
        return [(ids[:n], scores[:n], finished) for ids, scores, n, finished in zip(*columns, strict=True)][: self.spare]
