"""The data that passes between the stages of an iteration. Lengths and shapes of tokens are checked when they are made.

Letters for shapes, in all files: N prompts, G responses to each of them, B = N G sequences, T tokens, K rollouts of a state.
A *state* is a prompt and a response so far. A *step* is a reasoning step. A *rollout* is a response sampled from a state to its
end. An *update* is an optimizer step.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


class UserError(Exception):
    """A mistake that the user can correct. The command line prints it as one line and exits with code 2."""


@dataclass(frozen=True)
class Problem:
    """A question, a worked solution, and the answer alone in the form that the task grades."""

    question: str
    solution: str
    answer: str


@dataclass(frozen=True)
class Sampling:
    """How responses and rollouts are sampled."""

    max_new_tokens: int  # most tokens of a whole response; a rollout may use what the response so far has left of them
    eos_token_id: tuple[int, ...]  # the ids that end a response
    temperature: float = 1.0  # the logits are divided by it; 0 takes the most likely token
    top_p: float = 1.0  # sample from the smallest set of tokens whose probability reaches top_p
    batch_size: int = 512  # responses decoded at once, which bounds the memory of the KV cache

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or not self.eos_token_id or self.batch_size < 1:
            raise ValueError(f"{self}: needs temperature >= 0, 0 < top_p <= 1, an eos_token_id and batch_size >= 1")


def derive_seed(*parts) -> int:
    """A hash of the run's seed and a purpose, so that neighbouring seeds share nothing. PyTorch's CPU generator reads 32 bits."""
    return random.Random(" ".join(map(str, parts))).getrandbits(32)


@dataclass
class Trajectory:
    """One sampled response: the actions of an episode whose first state is the prompt."""

    prompt_ids: list[int]
    response_ids: list[int]  # when `finished`, the last one is the end-of-sequence token
    logprobs: Sequence[float]  # of each sampled token, in nats, under softmax(logits / temperature) without top-p
    finished: bool  # the model ended the response itself; False: the length limit truncated it

    def __post_init__(self):
        if not self.response_ids or len(self.response_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.response_ids)} response tokens with {len(self.logprobs)} log-probs")


@dataclass(frozen=True)
class Tokens:
    """Trajectories as [B, T] tensors. A row holds a prompt, a response, then padding. Column t belongs to the token at t."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor  # 1.0 on response tokens, the end-of-sequence token included

    def __post_init__(self):
        for name, tensor in vars(self).items():
            if tensor is not None and tensor.shape != self.input_ids.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, input_ids {tuple(self.input_ids.shape)}")

    def __len__(self):
        return len(self.input_ids)

    def micro_batches(self, rows: torch.Tensor, tokens: int) -> list[torch.Tensor]:
        """Rows [m] or groups of rows [m, w], in parts of similar length. A part has at most `tokens` tokens, or one group."""
        groups = rows.view(len(rows), -1)  # [m, w]
        widths = self.attention_mask.sum(dim=1).cpu()[groups].amax(dim=1).tolist()
        parts: list[list[int]] = []
        for i in sorted(range(len(rows)), key=lambda i: (widths[i], groups[i].tolist())):
            if not parts or widths[i] * groups.shape[1] * (len(parts[-1]) + 1) > tokens:
                parts.append([])
            parts[-1].append(i)
        return [rows[part] for part in parts]

    def rows(self, index: torch.Tensor):
        """The given rows, without the columns that are padding in all of them."""
        width = int(self.attention_mask[index].sum(dim=1).max())
        return type(self)(**{name: None if x is None else x[index, :width] for name, x in vars(self).items()})


@dataclass(frozen=True)
class Batch(Tokens):
    """What an update needs. All fields are [B, T]; those below are zero outside the response."""

    old_logprobs: torch.Tensor  # of the policy that sampled the tokens
    advantages: torch.Tensor
    ref_logprobs: torch.Tensor | None = None  # of the reference policy; None without a KL penalty
    values: torch.Tensor | None = None  # V(s_t) before token t, by the critic; None without a critic
    returns: torch.Tensor | None = None  # the critic's targets
    weights: torch.Tensor | None = None  # of the tokens in the policy loss (`divisors.importance`); None: each is 1


@dataclass(frozen=True)
class Episodes:
    """An iteration's experience: G responses to each of N problems. The lists have B entries."""

    problems: list[Problem]
    trajectories: list[Trajectory]
    rewards: torch.Tensor  # [N, G], from 0 to 1
    cuts: list[list[int]]  # the token index at which each step of a response starts; the first is 0
    tokens: Tokens
    task: Any  # the task module and the tokenizer grade rollouts
    tokenizer: Any


def collate(trajectories: list[Trajectory], device="cpu") -> Tokens:
    """Trajectories -> Tokens, padded on the right with token 0. The padding is masked, so any id would do."""
    T = max(len(t.prompt_ids) + len(t.response_ids) for t in trajectories)
    input_ids = torch.zeros(len(trajectories), T, dtype=torch.long)  # [B, T]
    attention_mask, response_mask = torch.zeros_like(input_ids), torch.zeros(input_ids.shape)
    for row, t in enumerate(trajectories):
        start, end = len(t.prompt_ids), len(t.prompt_ids) + len(t.response_ids)
        input_ids[row, :end] = torch.tensor(t.prompt_ids + t.response_ids)
        attention_mask[row, :end], response_mask[row, start:end] = 1, 1.0
    return Tokens(input_ids.to(device), attention_mask.to(device), response_mask.to(device))


def on_response(values: torch.Tensor | Sequence[Sequence[float]], response_mask: torch.Tensor) -> torch.Tensor:
    """One number for each response token, as a tensor [n] or as B lists -> [B, T], zero elsewhere."""
    flat = values if torch.is_tensor(values) else torch.tensor([x for row in values for x in row]).to(response_mask)
    return torch.zeros_like(response_mask, dtype=flat.dtype).masked_scatter(response_mask.bool(), flat)
