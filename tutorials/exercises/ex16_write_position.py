"""ex16: NoPE counts. The weights of Theorem 1 (tutorial 12)."""

import torch

from vine_mini.lengthgen.theory import IS_BOS, ONE, POSITION  # noqa: F401  0, 1, 2


@torch.no_grad()
def write_position(layer, length):
    """Sets weights with which a layer without position encoding writes each token's position (arXiv 2305.19466, Theorem 1).

    The residual stream of every token holds 1 in coordinate ONE, 1 in coordinate IS_BOS if the token is <bos> (else 0), and 0
    in coordinate POSITION. The others hold random content, which must not matter. <bos> comes first. There are no norms here.
    After the layer, coordinate POSITION must hold t = 1 (at <bos>), 2, ..., length + 1, exactly.

    In two moves:
        attention: if all keys are equal, token t attends to each of the t visible tokens with weight 1/t. A value that reads
            IS_BOS then gives the mean of (1, 0, ..., 0), which is 1/t: write it to POSITION.
        MLP: it sees x = 1/t and must add t - x. A sum of kinks does it: sum over j = 1 ... length of c_j relu(1/j - x), with
            c_1 = 3 and c_j = 2j else. Each kink is one hidden unit.

    Args:
        layer: its weights hold random numbers; set what matters in place, and to 0 what must not disturb it.
            layer.attention.qkv.weight [3D, D]: `.chunk(3)` gives queries, keys, values, [D, D] each. A row makes one number of
            a head.
            layer.attention.out.weight [D, D]: column i carries number i of the values to the residual stream.
            layer.up.weight [4D, D], layer.down.weight [D, 4D]: the MLP is down(relu(up(h))), without biases (ONE can be one).
        length: tokens after <bos>, at most 4D.
    Returns:
        nothing.

    Example: length 2, and the tokens <bos> a b. Attention writes 1, 1/2, 1/3, and the MLP makes 1, 2, 3 of them: at x = 1/2
        it adds 3 (1 - 1/2) + 4 (0) = 3/2.
    """
    raise NotImplementedError("ex16: write_position")
