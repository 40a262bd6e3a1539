"""The keys and values of trunks and slots. To the model's layers this is an ordinary cache."""

from transformers import DynamicCache

from vine_mini.sampling.fast.layout import Layout


class SlotCache(DynamicCache):
    """Keys and values of G trunks with L tokens, and of slots with at most `width` own tokens. H: heads of keys and values.

    Keys lie as [d, tokens] and values as [tokens, d], ready for the matrix products of attention.
    """

    layout: Layout  # set before each forward pass
    layer: int  # the layer that stored keys and values last

    def __init__(self, trunk_keys, trunk_values, size: int, width: int):
        super().__init__()
        self.trunk_keys, self.trunk_values = trunk_keys, trunk_values  # for each layer [G, H, d, L] and [G, H, L, d]
        self.keys = [k.new_zeros(size, *k.shape[1:3], width) for k in trunk_keys]  # for each layer [size, H, d, width]
        self.values = [v.new_zeros(size, v.shape[1], width, v.shape[3]) for v in trunk_values]  # [size, H, width, d]

    def copy(self, source, target) -> None:
        """Copies the own tokens of some slots to others. source, target [n]: slots, without a common one"""
        if len(source):
            for own in [*self.keys, *self.values]:
                own[target] = own[source]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Called by each layer. Stores the keys and values of every slot's newest token, [n, H, 1, d]."""
        slot, index = self.layout.newest
        self.layer = layer_idx  # which calls `attend` next
        self.keys[layer_idx][slot, :, :, index] = key_states[:, :, 0]
        self.values[layer_idx][slot, :, index] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, *args, **kwargs):
        """The model would count positions with this number, but the sampler passes positions."""
        return 0
