"""The data that passes between stages: dataclasses whose lengths are checked where they are made."""

from dataclasses import dataclass, fields

import torch


class UserError(Exception):
    """Something the user can mend; the command line prints it as one line and exits with code 2."""


@dataclass(frozen=True)
class Problem:
    """A question, a worked solution that ends in `#### answer`, and the answer alone."""

    question: str
    solution: str
    answer: str


@dataclass
class Trajectory:
    """One sampled response: the actions of an episode whose first state is the prompt.

    Attributes:
        prompt_ids: token ids of s_0.
        response_ids: the sampled tokens. When `finished`, the last one is the end-of-sequence token.
        logprobs: log-probability of each sampled token, in nats, under softmax(logits / temperature).
        finished: the model ended the response itself; False means that the length limit cut it.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    finished: bool

    def __post_init__(self):
        if not self.response_ids or len(self.response_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.response_ids)} response tokens with {len(self.logprobs)} log-probs")


@dataclass
class Batch:
    """Trajectories as tensors, one row each: prompt, response, then padding on the right.

    Every field is [B, T] and aligned with `input_ids`: column t speaks of the token at t.
    `response_mask` is 1.0 on response tokens, the end-of-sequence token included.
    The last five are filled in by the trainer; they are zero outside the response.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    old_logprobs: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    def __post_init__(self):
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None and tensor.shape != self.input_ids.shape:
                raise ValueError(f"{field.name} is {tuple(tensor.shape)}, input_ids {tuple(self.input_ids.shape)}")

    def __len__(self):
        return len(self.input_ids)

    def micro_batches(self, index, tokens: int) -> list[torch.Tensor]:
        """The given rows in parts of like length, each of at most `tokens` tokens with its padding (or of one row)."""
        lengths = self.attention_mask.sum(dim=1).tolist()
        parts: list[list[int]] = []
        for row in sorted(index.tolist(), key=lambda row: (lengths[row], row)):
            if parts and lengths[row] * (len(parts[-1]) + 1) <= tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
        return [torch.tensor(part) for part in parts]

    def rows(self, index) -> "Batch":
        """The given rows, without the columns that are padding in all of them."""
        width = int(self.attention_mask[index].sum(dim=1).max())
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: None if x is None else x[index, :width] for name, x in picked.items()})


def collate(trajectories: list[Trajectory], device="cpu") -> Batch:
    """Trajectories -> Batch, padded on the right with token 0 (masked, so any id would do)."""
    T = max(len(t.prompt_ids) + len(t.response_ids) for t in trajectories)
    input_ids = torch.zeros(len(trajectories), T, dtype=torch.long)  # [B, T]
    attention_mask = torch.zeros(len(trajectories), T, dtype=torch.long)
    response_mask = torch.zeros(len(trajectories), T)
    for row, t in enumerate(trajectories):
        start, end = len(t.prompt_ids), len(t.prompt_ids) + len(t.response_ids)
        input_ids[row, :end] = torch.tensor(t.prompt_ids + t.response_ids)
        attention_mask[row, :end] = 1
        response_mask[row, start:end] = 1.0
    return Batch(input_ids.to(device), attention_mask.to(device), response_mask.to(device))


def on_response(rows: list[list[float]], response_mask: torch.Tensor) -> torch.Tensor:
    """Lists with one number for each response token -> [B, T], zero elsewhere."""
    flat = torch.tensor([x for row in rows for x in row], device=response_mask.device)
    return torch.zeros_like(response_mask).masked_scatter(response_mask.bool(), flat.to(response_mask.dtype))
