"""A rough estimate of a job's time and memory. It refuses a job that would run for years because of a typing mistake."""

import torch

from vine_mini.app.fields import WEEK
from vine_mini.hardware import memory
from vine_mini.models import pick_device
from vine_mini.types import UserError

CPU, GPU = 1e10, 4e13  # operations a second that sampling does on a thread, on a GPU
USED = 0.25  # of the length limit, by responses that end by themselves
STATES = 8  # of a response, whose values rollouts estimate


def check_cost(config, parameters: int, responses: float, at_once: float, length: int | None = None) -> None:
    """Raises UserError where a job would take more than a week or twice this machine's memory, unless `config.yes`.

    Args:
        parameters: of the policy.
        responses, at_once: all that the job samples or imitates, and those that are in memory at the same time.
        length: tokens of a response; left out: `config.max_new_tokens`.
    """
    length = config.max_new_tokens if length is None else length
    rate = GPU if pick_device(config.device).type == "cuda" else CPU * torch.get_num_threads()
    seconds = 2 * parameters * responses * USED * length / rate
    held = 16 * parameters + at_once * (1000 + 20 * length)  # bytes: ids, log-probs and random numbers as well
    if not config.yes and (seconds > WEEK or held > 2 * memory(torch.device("cpu"))):
        takes = f"about {seconds / 86_400:,.0f} days and {held / 2**30:,.1f} GiB of memory"
        raise UserError(f"this takes {takes} ({responses:,.0f} responses): ask for less, or add --yes to go on")
