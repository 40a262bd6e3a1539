"""The requests of a chunk: what they have sampled, which of them are decoded at a position, and which of these share a slot."""

from array import array

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
        self.length[self.spare].zero_()  # `= 0` would copy the number from the CPU, and a GPU would wait

    def done(self, rows):
        """Whether each of these requests has ended. rows [n] -> [n]"""
        return self.finished[rows] | (self.length[rows] >= self.budget[rows])

    def results(self) -> list[tuple[list[int], array, bool]]:
        """For each request the token ids, their log-probs as an array of floats, and whether it sampled an end token."""
        sampled = torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.length[:, None]  # [R + 1, longest budget]
        ids, scores = self.tokens[sampled].tolist(), array("f", self.logprobs[sampled].cpu().numpy().tobytes())
        ends = self.length.cumsum(dim=0).tolist()
        places = zip([0, *ends], ends, self.finished.tolist(), strict=False)
        return [(ids[a:b], scores[a:b], finished) for a, b, finished in places][: self.spare]


class Slots:
    """The requests that are not done. The first `size` of them are the *members*, which are decoded now.

    `member` [m] are the members' rows in the table. `slot_of` [m] is the slot of each member. Members with equal tokens share
    a slot. Slots 0 to n - 1 are in use, and `lead` [n] is one member of each slot.
    """

    def __init__(self, table: Table, waiting, size: int):
        self.table, self.size = table, size
        # The place of a member is its slot. Waiting requests have places from `size` on. Requests that left the same trunk at the
        # same position with the same token have the same place and will start in one slot.
        left = zip(*(x.tolist() for x in (table.trunk[waiting], table.branch[waiting], table.newest(waiting))), strict=True)
        places: dict[tuple, int] = {}
        place = waiting.new_tensor([places.setdefault(key, size + len(places)) for key in left])
        self.place, order = place.sort(stable=True)
        self.rows = waiting[order]

    def fill(self):
        """Chooses the members of the next position and gives a slot to each group of equal members.

        -> source, target [moves]: the cache must copy these slots to those
        """
        member, place = self.rows[: self.size], self.place[: self.size]
        # Members that shared a slot and have now sampled different tokens become several groups.
        groups, group = torch.unique(place << 32 | self.table.newest(member), return_inverse=True)
        source = groups >> 32
        target = _assign(source)
        moves = ((source < self.size) & (source != target)).nonzero()[:, 0]
        self.member, self.slot_of, self.lead = member, target[group], torch.zeros_like(source)
        self.lead[self.slot_of] = member
        return source[moves], target[moves]

    def release(self, done) -> int:
        """Takes out the members that are done. done [m] -> their number"""
        working, going = len(self.member), (~done).nonzero()[:, 0]
        self.rows = torch.cat([self.member[going], self.rows[working:]])
        self.place = torch.cat([self.slot_of[going], self.place[working:]])
        return working - len(going)


def _assign(source):
    """A slot for each of n groups, so that the slots 0 to n - 1 are in use. source [n], ascending: where the groups come from

    The first group of a slot keeps the slot if its number is below n. The other groups take the free slots.
    """
    keeps = source < len(source)
    keeps[1:] &= source[1:] != source[:-1]
    free = torch.ones_like(keeps)
    free[source[keeps]] = False
    return source.masked_scatter(~keeps, free.nonzero()[:, 0])
