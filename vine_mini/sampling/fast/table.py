"""The requests of a chunk as tensors."""

import torch

from vine_mini.sampling.plain import Request, choose
from vine_mini.types import Sampling


class Table:
    """What R requests ask for and what they have sampled, one row each.

    Row R is a spare row, which is always done. Tensors of fixed size point to the spare row from places that are not in use.
    """

    def __init__(self, requests: list[Request], uniforms, sampling: Sampling, device):
        self.sampling, self.eos, self.spare = sampling, torch.tensor(sampling.eos_token_id, device=device), len(requests)
        columns = zip(*[(r.trunk, r.start, r.budget) for r in requests], (-1, 1, 0), strict=True)
        self.trunk, self.start, self.budget = (torch.tensor(column, device=device) for column in columns)  # [R + 1]
        self.branch = self.start.clone()  # [R + 1] number of the trunk's tokens before the request's own tokens
        self.length = torch.zeros_like(self.start)  # [R + 1] number of sampled tokens
        self.finished = torch.zeros_like(self.start, dtype=torch.bool)  # [R + 1] whether an end token was sampled
        self.uniforms = torch.cat([uniforms, uniforms[:1]]).to(device)  # [R + 1, longest budget]
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)  # sampled tokens
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)

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
        """Whether each of these requests has ended. rows [n] -> [n]"""
        return self.finished[rows] | (self.length[rows] >= self.budget[rows])

    def results(self) -> list[tuple[list[int], list[float], bool]]:
        """For each request the token ids, their log-probs, and whether it sampled an end token."""
        columns = self.tokens.tolist(), self.logprobs.tolist(), self.length.tolist(), self.finished.tolist()
        return [(ids[:n], scores[:n], finished) for ids, scores, n, finished in zip(*columns, strict=True)][: self.spare]
