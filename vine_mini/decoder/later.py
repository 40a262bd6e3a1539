"""The position encodings that came after the paper's. Each is one function on tensors, named as the field names it.

    position ids        random, coupled or digit-wise ids for any encoding         randomized, coupled_ids, abacus_ids
    queries and keys    q_t times a number                                    head_scale, log_length
    attention logits    a bias from the distance                                   kerple_log, fire, window
    attention logits    a bias from the content of the keys in between             forget_bias (FoX), cope_bias

`table.py` gives each its name and the initial values of its parameters.
"""

import math

import torch

FIRE_UNIT = 32  # tokens; about as long as short training sequences

# --- position ids: [B, T] in place of 0, 1, 2, ... -------------------------------------------------------------------------


def randomized(tokens: int, largest: int, generator=None):
    """Randomized positions (Ruoss et al. 2023, arXiv 2305.16843): a sorted random subset of 0..largest-1. -> [1, tokens]

    Training then meets positions and distances that only longer sequences have. Deviation: `tokens` does not depend on the
    sequence. The official code draws for each sequence's own length, and the spacing of the ids then tells this length
    (`lengthgen.train.own_ids`). largest = tokens gives 0, 1, 2, ... Raises ValueError for more tokens than positions.
    """
    if tokens > largest:
        raise ValueError(f"{tokens} tokens need {tokens} different positions; there are {largest}")
    return torch.randperm(largest, generator=generator)[:tokens].sort().values[None]


def abacus_ids(is_digit):
    """Abacus (McLeish et al. 2024, arXiv 2405.17399): each digit's place in its number, from 1; 0 for other tokens.

    Digits of the same significance share an id where numbers are written with the lowest digit first. A number is a run of
    digits. is_digit [B, T] bool -> [B, T]. The paper adds a random start in training (see `shifted`).
    """
    count = is_digit.cumsum(dim=1)
    before = count.masked_fill(is_digit, 0).cummax(dim=1).values  # digits before this number
    return (count - before) * is_digit


def coupled_ids(is_digit, is_answer):
    """Position coupling for addition (Cho et al. 2024, arXiv 2405.20671): digits of the same significance share an id.

    The ones have id 1, the tens 2, and so on; other tokens have 0. This is for the paper's format (`--task addition-reversed`):
    the numbers of the prompt end with their lowest digit, and the answer begins with its lowest digit. In plain order, the id of
    the answer's first digit would be the answer's length, which is not known yet. Deviation: in the official code "+" and "="
    have an id too. It is one less than the id of the ones.

    is_digit, is_answer [B, T] bool -> [B, T]
    """
    return torch.where(is_answer, abacus_ids(is_digit), abacus_ids(is_digit.flip(1)).flip(1))


def shifted(ids, largest: int, generator=None):
    """Adds one random number to all ids but 0, such that they stay below `largest`. [B, T] -> [B, T]

    Training then meets the ids of longer numbers (both papers of ids by digits). Deviation: tests draw a number as well, where
    both official codes add none. Raises ValueError where the ids do not fit.
    """
    room = largest - int(ids.max())
    if room < 1:
        raise ValueError(f"ids up to {int(ids.max())} do not fit below {largest}")
    return ids + (ids > 0) * torch.randint(room, (1,), generator=generator).to(ids.device)


# --- queries and keys ------------------------------------------------------------------------------------------------------


def head_scale(qk, scale):
    """HeadScale (Wang et al. 2024, arXiv 2404.12224): each head's logits times a number, which is 1 / temperature.

    The paper learns the scales of a trained NoPE model and nothing else. Scales that are learned together with the weights of the
    queries can express nothing new, because the weights can absorb them. qk [2, B, H, T, d], scale [H] -> [2, B, H, T, d]
    """
    return torch.stack([qk[0] * scale[:, None, None], qk[1]])


def log_length(qk, positions, length: int):
    """Logits of the query with n visible keys times log n / log length. Attention then stays as sharp with more keys.

    Chiang and Cholak (2022, arXiv 2202.12172) multiply by log n. `length` only sets where the factor is 1.
    qk [2, B, H, T, d], positions [B, T] counted from 0 -> [2, B, H, T, d]
    """
    factor = (positions + 1).log() / math.log(length)  # [B, T]
    return torch.stack([qk[0] * factor[:, None, :, None], qk[1]])


# --- attention logits, from the distance -----------------------------------------------------------------------------------


def kerple_log(distance, p, a):
    """KERPLE, logarithmic (Chi et al. 2022, arXiv 2205.09921): -p log(1 + a (t - i)) with p, a > 0 for each head.

    With a -> 0 and p a = m this is ALiBi with slope m. distance [B, Q, K], p and a [H] -> [B, H, Q, K]
    """
    return -p[:, None, None] * (a[:, None, None] * distance.clamp(min=0)[:, None]).log1p()


def fire(distance, positions, w):
    """FIRE (Li et al. 2023, arXiv 2310.04418): f(psi(t - i) / psi(max(t, L))) with psi(x) = log(1 + c x) and an MLP f.

    The argument of f is between 0 and 1 at every length. The MLP has no output bias, which softmax would not see.

    Args:
        distance: [B, Q, K], t - i.
        positions: [B, Q], t.
        w: scalars c, and L in units of FIRE_UNIT tokens; first [32], first_bias [32], second [32, H], the MLP from a number to a
            number for each head.
    Returns:
        [B, H, Q, K]
    """
    c, longest = w["c"].abs(), torch.maximum(positions, FIRE_UNIT * w["L"].abs())  # [B, Q]
    x = (c * distance.clamp(min=0)).log1p() / (c * longest).log1p().clamp(min=1e-30)[:, :, None]  # [B, Q, K]; c may be 0
    hidden = (x[..., None] * w["first"] + w["first_bias"]).relu()  # [B, Q, K, 32]
    return (hidden @ w["second"]).permute(0, 3, 1, 2)


def window(distance, width: int):
    """A sliding window: a query sees the last `width` keys, itself included. distance [B, Q, K] -> [B, 1, Q, K]

    RNoPE-SWA (Yang et al. 2025, arXiv 2501.18795) has RoPE layers with a window between NoPE layers without one.
    """
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(distance.shape, device=distance.device).masked_fill(distance >= width, lowest)[:, None]


# --- attention logits, from the content ------------------------------------------------------------------------------------


def forget_bias(log_f, queries: int):
    """Forgetting attention, FoX (Lin et al. 2025, arXiv 2503.02130): sum of log f_j over the tokens j = i+1..t.

    f is a gate between 0 and 1 at each token. A constant f is ALiBi with slope -log f. f = 1 is NoPE.
    log_f [B, H, K], the number of queries Q, which are the last tokens -> [B, H, Q, K]
    """
    total = log_f.cumsum(dim=-1)  # [B, H, K]
    return total[:, :, -queries:, None] - total[:, :, None, :]


def cope_bias(gates, q, table):
    """CoPE (Golovneva et al. 2024, arXiv 2405.18719): q . e[p], where p is the sum of the gates from key i to query t.

    p is a real number, so the products with the two nearest rows of e are interpolated. p ends at the last row. With all gates 1
    this is a learned table of relative positions.

    The decoder passes q / sqrt(d), as the official code does. The paper's listing divides q for the gates only, so its table acts
    more strongly.

    Args:
        gates: [B, H, Q, K] between 0 and 1; 0 for keys after the query.
        q: [B, H, Q, d].
        table: [rows, d], the vectors e.
    Returns:
        [B, H, Q, K]
    """
    p = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=len(table) - 1)  # [B, H, Q, K]
    products = q @ table.T  # [B, H, Q, rows]
    below, above = products.gather(-1, p.floor().long()), products.gather(-1, p.ceil().long())  # [B, H, Q, K]
    return torch.lerp(below, above, p - p.floor())
