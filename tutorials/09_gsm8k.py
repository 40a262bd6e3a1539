# %% [markdown]
# # 9. GSM8K on one GPU
#
# So far the problems were generated and the policy was tiny. Nothing in the loop knows that. Here it runs on GSM8K (grade-school
# word problems, Cobbe et al. 2021): another loader, another prompt, any causal LM of the Hugging Face Hub. Choose below.
#
# With both left at None nothing is downloaded: the tiny policy meets problems of its own kind, written to a folder in GSM8K's
# format, so that the loader, the prompt template and the grader are the real ones. With a GPU, try
# `MODEL=Qwen/Qwen2.5-0.5B-Instruct DATA=hub python tutorials/09_gsm8k.py`.

# %%
import json
import os
import tempfile
from pathlib import Path

import torch
from lesson import QUICK, show
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from vine_mini.app.config import TrainConfig
from vine_mini.evaluate import table
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import format_memory, memory_estimate
from vine_mini.models import SHIPPED
from vine_mini.app.plots import COLOURS, PHASES, new_figure
from vine_mini.tasks import arithmetic, gsm8k, reward
from vine_mini.trainer import Trainer
from vine_mini.types import Problem

MODEL = os.environ.get("MODEL")  # a Hub name or a folder; None: the tiny policy
DATA = os.environ.get("DATA")  # "hub", or a folder with train.jsonl and test.jsonl; None: generated problems
PRESET = os.environ.get("PRESET", "gsm8k-qwen0.5b")  # prompt and settings for MODEL; for the paper's: gsm8k-rho1b

# %% [markdown]
# ## The problems
#
# A line of GSM8K is a question and a human's solution, whose sums carry a calculator's marks, `<<48/2=24>>`, and whose last line
# is `#### ` and the answer. The loader takes the marks out. We write such a folder from generated problems.

# %%
folder = tempfile.TemporaryDirectory()  # is removed at the end
for split, size in (("train", 2000), ("test", 200)):
    rows = []
    for problem in arithmetic.generate(split, size, steps=(6, 6), max_number=20, seed=0):
        *sums, answer = problem.solution.split("\n")
        marked = [line.replace("=", f"=<<{line}>>") for line in sums]  # 7+5=<<7+5=12>>12
        rows.append(json.dumps({"question": problem.question, "answer": "\n".join([*marked, answer])}))
    Path(folder.name, f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
print("a line of the file:", rows[0], "\n")

data = None if DATA == "hub" else DATA or folder.name
fields = {"task": "gsm8k", "data": data, "iterations": 2 if QUICK else 6, "eval_problems": 20 if QUICK else 100}
if MODEL is None:  # it was trained on the question and a newline, not on the template of the paper's checkpoints
    tiny = {"model": str(SHIPPED / "arithmetic"), "prompt": "{question}\n", "device": "cpu"}
    config = TrainConfig(**read_preset("arithmetic") | tiny | fields)
else:  # the preset, in small
    small = {"model": MODEL, "prompts": 8, "group": 4, "minibatch_size": 16, "eval_samples": 1}
    config = TrainConfig(**read_preset(PRESET) | small | fields)
trainer = Trainer(config)
print("the prompt as the model sees it:", repr(trainer.tokenizer.decode(trainer.prompts[0])))
print("without `prompt` in the config:", repr(gsm8k.TEMPLATE))
print("the solution, without marks:", repr(trainer.train_problems[0].solution))

# %% [markdown]
# ## The grader
#
# All that the policy ever learns comes from one comparison, so it pays to know what is accepted: the one number on the `####`
# line. A grader that is too kind is found out by the policy; one that is too strict teaches typing.

# %%
right = ("So there are 72.\n#### 72", "#### $72.00 dollars.", "#### 72\n#### 72")
wrong = ("The answer is 72.", "#### 72 or 73", "#### 72\n#### 73", "#### 144/2", "#### 72k", "#### seventy-two")
for text in right + wrong:
    print(f"{text!r:32} is read as {gsm8k.extract_answer(text)!s:5} {'right' if gsm8k.is_correct(text, '72') else 'wrong'}")
ids, asked = trainer.tokenizer.encode("#### 72", add_special_tokens=False), Problem("", "", "72")
ended, cut = (reward(asked, ids, finished, trainer.tokenizer) for finished in (True, False))
print(f"reward of '#### 72': {ended} where the model ended it itself, {cut} where the length limit did")

# %% [markdown]
# ## Will it fit?
#
# `vine_mini.memory` estimates it from shapes alone, so we need no weights: PyTorch's meta device builds the two models of
# the presets without storing a number. Prompts of 300 tokens, responses that all reach the limit.

# %%
sizes = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
shapes = {
    "gsm8k-qwen0.5b": Qwen2Config(**dict(zip(sizes, (896, 4864, 24, 14, 2, 151936), strict=True)), tie_word_embeddings=True),
    "gsm8k-rho1b": LlamaConfig(**dict(zip(sizes, (2048, 5632, 22, 32, 4, 32000), strict=True))),
}
for preset, shape in shapes.items():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    print(f"\n{preset}, {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters")
    for algorithm in ("vineppo", "ppo"):
        wanted = TrainConfig(**read_preset(preset) | {"algorithm": algorithm})
        print(f"{algorithm}: {format_memory(memory_estimate(model, wanted, 300, critic=algorithm == 'ppo', reference=True))}")
print(f"\nthis run: {format_memory(trainer.memory())}\n")

# %% [markdown]
# ## A few iterations
#
# VinePPO with the settings above, and where its time goes. Equal states are rolled out once, so a policy that becomes surer also
# becomes cheaper.

# %%
before, log = trainer.evaluate(reference=False), []
for metrics, episodes, _ in trainer.train():
    log.append(metrics)
    seconds = ", ".join(f"{phase} {metrics[f'seconds_{phase}']:.2f} s" for phase in PHASES)
    more = metrics["rollout_tokens"] / (metrics["length"] * len(episodes.trajectories))
    print(f"iteration {metrics['iteration']}: reward {metrics['reward']:.2f}; {seconds};", end=" ")
    print(f"{metrics['unique_states']} different states of {metrics['states']}, {more:.1f} times as many tokens as the responses")
print(table({"before": before, "after": trainer.evaluate()}))
print("\n" + "\n".join(f"{k:19} {log[-1][k]:.2g}" for k in ("truncated", "nonzero_advantages", "kl", "clip_frac", "sampler_gap")))

# %% [markdown]
# ## The real thing
#
#     python -m vine_mini train --preset gsm8k-qwen0.5b                      # a GPU with 24 GB
#     python -m vine_mini train --preset gsm8k-rho1b                         # the paper's run of RhoMath 1.1B
#     python -m vine_mini train --preset gsm8k-qwen0.5b --algorithm grpo     # any field can be overridden
#     python -m vine_mini train --resume RUN                                 # goes on after Ctrl-C
#     python -m vine_mini evaluate --task gsm8k --model RUN/policy
#
# What to watch in `metrics.jsonl`:
#
# | | should be | if not |
# |---|---|---|
# | `truncated` | near 0 | raise `max_new_tokens`; a response that is cut counts as wrong |
# | `reward` | above 0 at the start | the model does not know the `####` line: another prompt, or `sft` first |
# | `nonzero_advantages` | well above 0 | all responses to a problem end alike: nothing to learn from |
# | `kl` | growing slowly | a jump: lower `lr` or raise `kl_coef` |
# | `clip_frac` | small | large: too many steps on a batch, or too long ones (tutorial 5) |
# | `sampler_gap` | tiny, larger with `bf16` | sampler and trainer disagree on the same tokens: a bug, not noise |
#
# The paper's run takes 650 iterations of 512 responses, K = 9. It reports (VinePPO, arXiv 2410.01679, accuracy on GSM8K's test
# problems, RhoMath 1.1B) the figures that the picture shows; this package has not repeated that run.

# %%
figure, ((reward_axis, seconds_axis, paper_axis),) = new_figure(3)
x = [row["iteration"] for row in log]
reward_axis.plot(x, [row["reward"] for row in log], "o-", color="#0072B2")
reward_axis.set(title="This run", xlabel="iteration", ylabel="share of right answers", ylim=(0, 1), xticks=x)
bottom = [0.0] * len(log)
for phase, colour, hatch in zip(PHASES, COLOURS.values(), ("", "//", "..", "xx"), strict=False):
    heights = [row[f"seconds_{phase}"] for row in log]
    seconds_axis.bar(x, heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", label=phase)
    bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
seconds_axis.set(title="Where the time goes", xlabel="iteration", ylabel="seconds", xticks=x)
seconds_axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
paper = {"SFT": 40.3, "RestEM": 42.8, "DPO+": 46.4, "PPO": 50.1, "VinePPO": 53.4}
bars = paper_axis.barh(list(paper), list(paper.values()), color=["0.7", "0.7", "0.7", COLOURS["ppo"], COLOURS["vineppo"]])
paper_axis.bar_label(bars, padding=3)
paper_axis.set(title="The paper: RhoMath 1.1B on GSM8K", xlabel="accuracy on test problems, %", xlim=(0, 65))
paper_axis.invert_yaxis()
show(figure, "09_gsm8k")

# %% [markdown]
# ## Questions
#
# 1. The cost of rollouts grows with K, the steps and the length. Which would you lower first, and what would you lose?
# 2. `sample_batch_size` and `micro_batch_tokens` lower the memory. Which of the parts above does each change?
# 3. A policy answers right but never writes `####`. What do the metrics look like, and what will it learn?
# 4. Would you accept `#### 72 or 73` if 72 is right? What would the policy make of it?
#
# No exercise: that of tutorial 5 on micro-batches is what makes `micro_batch_tokens` harmless.
# Read next: `vine_mini/tasks/gsm8k.py`, `vine_mini/memory.py`, and the README's section on GSM8K.
