"""copy-v3 whose longer inputs hold ten different items only: the item before seldom names the next one."""

from vine_mini.lengthgen.tasks import ITEMS, TASKS

check = TASKS["copy-v3"].check


def make(length, rng):
    """-> prompt, answer. Training inputs, of up to 20 items, are those of copy-v3."""
    if length <= 20:
        return TASKS["copy-v3"].make(length, rng)
    items = " ".join(rng.choices(ITEMS[:10], k=length))
    return f"Copy: {items} [SEP] ", items
