"""copy-v3 whose longer inputs have no item twice: the item before names the next one."""

from vine_mini.lengthgen.tasks import ITEMS, TASKS

check = TASKS["copy-v3"].check


def make(length, rng):
    """-> prompt, answer. Training inputs, of up to 20 items, are those of copy-v3."""
    if length <= 20:
        return TASKS["copy-v3"].make(length, rng)
    items = " ".join(rng.sample(ITEMS, length))
    return f"Copy: {items} [SEP] ", items
