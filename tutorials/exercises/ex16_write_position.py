"""ex16: NoPE counts. The weights of Theorem 1 (tutorial 13).

Hard, about 40 minutes.
"""

import torch

from vine_mini.lengthgen.theory import IS_BOS, ONE, POSITION  # noqa: F401  0, 1, 2


@torch.no_grad()
def write_position(layer, length):
    """Sets the weights of a layer so that it writes each token's position, without a position encoding.

    Source: arXiv 2305.19466, Theorem 1. The first token is <bos>. The hidden state of every token holds

        coordinate ONE         1
        coordinate IS_BOS      1 for <bos>, 0 for all other tokens
        coordinate POSITION    0
        other coordinates      random content, which must not matter

    After the layer, coordinate POSITION must hold the position t exactly: 1 for <bos>, then 2, ..., length + 1. All other
    coordinates must keep their values. The layer has no norms and works in two parts:

    Attention: if all keys are equal, token t gives each of the t visible tokens the weight 1/t. Let the value be IS_BOS. The mean
        of (1, 0, ..., 0) is then 1/t. Write it to POSITION.
    MLP: it reads x = 1/t and must add t - x. The sum over j = 1 ... length of c_j relu(1/j - x) does this, with c_1 = 3 and
        c_j = 2j for the others. Each term of the sum is one hidden unit.

    Args:
        layer: its weights hold random numbers. Set the needed weights in place, and set those that would disturb them to 0.
            layer.attention.qkv.weight [3D, D]: `.chunk(3)` gives queries, keys and values, [D, D] each. A row computes one
            number of a head.
            layer.attention.out.weight [D, D]: column i adds number i of the values to the hidden state.
            layer.up.weight [4D, D], layer.down.weight [D, 4D]: the MLP is down(relu(up(h))), without biases. The coordinate
            ONE can serve as a bias.
        length: number of tokens after <bos>, at most 4D.
    Returns:
        nothing.

    Example: length 2 and the tokens <bos> a b. Attention writes 1, 1/2, 1/3, and the MLP turns them into 1, 2, 3. At x = 1/2
        it adds 3 (1 - 1/2) + 4 (0) = 3/2.
    """
    raise NotImplementedError("ex16: write_position")
