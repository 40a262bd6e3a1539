"""The keys and values of trunks and slots. To the model's layers this is an ordinary cache."""

from transformers import DynamicCache


class SlotCache(DynamicCache):
    """Keys and values of G trunks with L tokens, and of slots with at most `width` own tokens. H: heads of keys and values.

    Keys are stored as [d, tokens] and values as [tokens, d], ready for the matrix products of attention.

    Attributes:
        layout: of the current position (`attention.Layout`).
        layer: the layer that stored its keys and values last.
    """

    def __init__(self, trunk_keys, trunk_values, size: int, width: int):
        super().__init__()
        self.trunk_keys, self.trunk_values = trunk_keys, trunk_values  # for each layer [G, H, d, L] and [G, H, L, d]
        self.keys = [k.new_zeros(size, *k.shape[1:3], width) for k in trunk_keys]  # for each layer [size, H, d, W]
        self.values = [v.new_zeros(size, v.shape[1], width, v.shape[3]) for v in trunk_values]  # [size, H, W, d]

    def copy(self, source, target) -> None:
        """Copies the own tokens of some slots to others. source, target: [n] numbers of slots without a common one"""
        if len(source):
            for own in [*self.keys, *self.values]:
                own[target] = own[source]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Stores the keys and values of the newest token of each slot, [n, H, 1, d]. Each layer calls this once a position."""
        slot, age = self.layout.newest
        self.layer = layer_idx
        self.keys[layer_idx][slot, :, :, age] = key_states[:, :, 0]
        self.values[layer_idx][slot, :, age] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs):
        """The model asks for it in order to count positions. Here the positions are given."""
        return 0
