"""Reading trunks: their keys and values, and how far each fork writes what its trunk says.

The random number of every token is drawn beforehand. So one reading of a trunk tells how long a fork will write the
trunk's own tokens: while its numbers fall into those tokens' intervals of the cumulative distribution.
"""

import torch
from transformers import DynamicCache

from vine_mini.decoding import Fork, choose, cumulative
from vine_mini.logprobs import logits_of, rows_of_logits

READ_TOKENS = 8192  # in one forward pass


class Forks:
    """F forks as tensors: what they ask for and what they have written.

    Row F is nobody's: where a tensor of fixed size has more places than forks, the rest writes there.
    """

    def __init__(self, forks: list[Fork], uniforms, temperature, top_p, eos, device):
        columns = zip(*[(f.trunk, f.start, f.budget) for f in forks], (-1, 1, 0), strict=True)
        self.trunk, self.start, self.budget = (torch.tensor(c, device=device) for c in columns)  # [F + 1] each
        self.uniforms = torch.cat([uniforms, uniforms[:1]]).to(device)  # [F + 1, longest budget]
        self.nobody = len(forks)
        self.temperature, self.top_p, self.eos = temperature, top_p, torch.tensor(eos, device=device)
        self.tokens = torch.zeros(self.uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(self.uniforms.shape, device=device)
        self.length = torch.zeros_like(self.start)  # tokens written
        self.origin = self.start.clone()  # tokens of the trunk before the fork left it
        self.finished = torch.zeros_like(self.start, dtype=torch.bool)

    def write(self, fork, logits) -> None:
        """Samples the next token of these forks. fork [n]; logits [n, V]"""
        place = self.length[fork].clamp(max=self.tokens.shape[1] - 1)
        token, logprob = choose(logits, self.uniforms[fork, place], self.temperature, self.top_p)
        self.tokens[fork, place], self.logprobs[fork, place] = token, logprob
        self.finished[fork] = (token[:, None] == self.eos).any(dim=1)
        self.length[fork] += 1
        self.length[-1] = 0

    def over(self, fork):
        """Whether each of these forks is complete. [n]"""
        return self.finished[fork] | (self.length[fork] >= self.budget[fork])

    def results(self) -> list[tuple[list[int], list[float], bool]]:
        """For each fork: token ids, their log-probs, whether it ended itself."""
        columns = self.tokens.tolist(), self.logprobs.tolist(), self.length.tolist(), self.finished.tolist()
        return [(ids[:n], lp[:n], end) for ids, lp, n, end in zip(*columns, strict=True)][: self.nobody]


def read(model, trunks: list[list[int]], forks: Forks):
    """Reads every trunk once, lets the forks follow, and gives those that leave their first token of their own.

    -> keys and values of G trunks: for each layer [G, H, d, L] and [G, H, L, d]
    """
    keys: list = []
    values: list = []
    longest = max(map(len, trunks))
    for rows in torch.arange(len(trunks)).split(max(1, READ_TOKENS // longest)):
        first, last = int(rows[0]), int(rows[-1]) + 1
        lengths = torch.tensor([len(t) for t in trunks[first:last]], device=model.device)  # [b]
        width = int(lengths.max())
        ids = torch.tensor([t + [0] * (width - len(t)) for t in trunks[first:last]], device=model.device)  # [b, w]
        cache = DynamicCache()  # without the model's config, so that sliding layers keep everything
        hidden = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state  # [b, w, D]
        for n, layer in enumerate(cache.layers):
            if first == 0:
                keys.append(layer.keys.new_zeros(len(trunks), layer.keys.shape[1], layer.keys.shape[3], longest))
                values.append(layer.values.new_zeros(len(trunks), layer.values.shape[1], longest, layer.values.shape[3]))
            keys[n][first:last, :, :, :width] = layer.keys.mT
            values[n][first:last, :, :width] = layer.values
        fork = ((forks.trunk >= first) & (forks.trunk < last)).nonzero()[:, 0]  # [f]
        row = forks.trunk[fork] - first
        _follow(model, forks, fork, row, ids, lengths, hidden)
        going, size = ~forks.over(fork), rows_of_logits(model)
        for f, r in zip(fork[going].split(size), row[going].split(size), strict=True):
            logits = logits_of(model, hidden[r, forks.origin[f] - 1])  # after the last token that fork and trunk share
            forks.write(f, logits)
    return keys, values


def _follow(model, forks: Forks, fork, row, ids, lengths, hidden):
    """Writes the trunks' tokens for as long as each fork would sample them. fork, row [f]; ids [b, w]; hidden [b, w, D]"""
    begin = lengths.scatter_reduce(0, row, forks.start[fork], "amin")  # the first token of each trunk to be sampled
    place = torch.arange(ids.shape[1], device=ids.device)
    sampled = (place >= begin[:, None]) & (place < lengths[:, None])  # [b, w]
    low, high, logprob = (torch.zeros(ids.shape, device=ids.device) for _ in range(3))  # an empty interval elsewhere
    size = rows_of_logits(model)
    pieces = zip(hidden[:, :-1][sampled[:, 1:]].split(size), ids[sampled].split(size), strict=True)
    parts = zip(*[_interval(model, forks, *piece) for piece in pieces], strict=True)
    low[sampled], high[sampled], logprob[sampled] = (torch.cat(column) for column in parts)

    start, budget = forks.start[fork][:, None], forks.budget[fork][:, None]
    J = min(forks.uniforms.shape[1], int((lengths[row] - start[:, 0]).max()))  # nobody can follow further
    own = torch.arange(J, device=ids.device)  # token of the response
    at = row[:, None], (start + own).clamp(max=ids.shape[1] - 1)  # its place in the trunk, [f, J]
    u, eos = forks.uniforms[fork, :J], torch.isin(ids, forks.eos)[at]
    agrees = (own < budget) & (start + own < lengths[row][:, None]) & (low[at] <= u) & (u < high[at])
    ended = (agrees & eos).long()
    agrees &= ended.cumsum(dim=1) == ended  # nothing comes after an end
    follows = agrees.long().cumprod(dim=1)  # [f, J]: 1 up to the first disagreement
    forks.tokens[fork, :J], forks.logprobs[fork, :J] = ids[at] * follows, logprob[at] * follows
    forks.length[fork] = follows.sum(dim=1)
    forks.origin[fork] += forks.length[fork]
    forks.finished[fork] = (follows.bool() & eos).any(dim=1)


def _interval(model, forks: Forks, hidden, tokens):
    """The numbers in [0, 1) with which `choose` takes these tokens. hidden [n, D] -> low, high, log-prob, [n] each"""
    logprobs = (logits_of(model, hidden) / (forks.temperature or 1.0)).log_softmax(dim=-1)  # [n, V]
    at = tokens[:, None]
    if forks.temperature == 0:
        high = (logprobs.argmax(dim=-1) == tokens).float()
        low = torch.zeros_like(high)
    else:
        cdf = cumulative(logprobs, forks.top_p)
        high = cdf.gather(1, at)[:, 0]
        low = torch.where(tokens > 0, cdf.gather(1, (at - 1).clamp(min=0))[:, 0], 0.0)
    return low, high, logprobs.gather(1, at)[:, 0]
