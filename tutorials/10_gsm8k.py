# %% [markdown]
# # 10. The same loop on GSM8K
#
# So far the problems were generated and the policy was tiny. The training loop depends on neither. In this tutorial the loop runs
# on GSM8K, grade-school word problems (Cobbe et al. 2021). We only need another task, another prompt, and any causal language
# model of the Hugging Face Hub. You choose the model and the data below.
#
# With both left at None, nothing is downloaded. The tiny policy then gets its own kind of problems in GSM8K's file format, so the
# loader and the grader are the real ones. With a GPU, try
# `MODEL=Qwen/Qwen2.5-0.5B-Instruct DATA=hub python tutorials/10_gsm8k.py`.

# %%
import json
import os
import tempfile
from pathlib import Path

import torch
from lesson import QUICK, show
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from vine_mini import tasks
from vine_mini.app.config import SHIPPED, TrainConfig
from vine_mini.app.flags import read_preset
from vine_mini.app.memory import estimate, format_memory, memory_estimate
from vine_mini.app.plots import COLOURS, PHASES, new_figure
from vine_mini.evaluate import table
from vine_mini.models import load_policy, pick_device
from vine_mini.tasks import arithmetic, gsm8k
from vine_mini.trainer import Trainer
from vine_mini.types import Problem, Trajectory

MODEL = os.environ.get("MODEL")  # a Hub name or a folder; None: the tiny policy
DATA = os.environ.get("DATA")  # "hub", or a folder with train.jsonl and test.jsonl; None: generated problems
PRESET = os.environ.get("PRESET", "gsm8k-qwen0.5b")  # prompt and settings for MODEL; the paper's are gsm8k-rho1b

# %% [markdown]
# ## The problems
#
# A line of a GSM8K file holds a question and a solution written by a person. Calculations in the solution carry annotations for a
# calculator, such as `<<48/2=24>>`. The last line of the solution is `#### ` and the answer. The loader removes the annotations.
# We write a folder of such files from generated problems.

# %%
folder = tempfile.TemporaryDirectory()  # is removed when the program ends
for split, size in (("train", 2000), ("test", 200)):
    rows = []
    for problem in arithmetic.generate(split, size, steps=(6, 6), max_number=20, seed=0):
        *lines, answer = problem.solution.split("\n")
        marked = [line.replace("=", f"=<<{line}>>") for line in lines]  # 7+5=<<7+5=12>>12
        rows.append(json.dumps({"question": problem.question, "answer": "\n".join([*marked, answer])}))
    Path(folder.name, f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
print("a line of the file:", rows[0], "\n")

# %% [markdown]
# ## A trainer from its parts
#
# A `Trainer` takes a configuration, a policy with its tokenizer, and two lists of problems. You can make each part yourself, for
# instance fine-tune the policy first or select the problems.

# %%
data = None if DATA == "hub" else DATA or folder.name
fields = {"task": "gsm8k", "data": data, "iterations": 2 if QUICK else 6, "eval_problems": 20 if QUICK else 100}
if MODEL is None:  # the tiny policy knows the question and a newline as its prompt, not the template of the paper's models
    tiny = {"model": str(SHIPPED / "arithmetic"), "prompt": "{question}\n", "device": "cpu"}
    config = TrainConfig(**read_preset("arithmetic") | tiny | fields)
else:  # the preset with small iterations
    small = {"model": MODEL, "prompts": 8, "group": 4, "minibatch_size": 16, "eval_samples": 1}
    config = TrainConfig(**read_preset(PRESET) | small | fields)
train_problems, test_problems = tasks.load_problems(config)
policy, tokenizer = load_policy(config.model, pick_device(config.device))
trainer = Trainer(config, policy, tokenizer, train_problems, test_problems[: config.eval_problems])
print("a prompt:", repr(tokenizer.decode(trainer.prompts[0])))
print("the task's own template, which is used without `prompt` in the configuration:", repr(gsm8k.TEMPLATE))
print("the solution without annotations:", repr(train_problems[0].solution))

# %% [markdown]
# ## The grader
#
# The policy learns from the grader's reward alone, so we look at what the grader accepts. A response must give one number, the
# same on all its answer lines (`####`). A line such as `#### Step 1`, in which a word stands before the number, is a heading. A
# policy will exploit a grader that accepts too much.

# %%
right = ("So there are 72.\n#### 72", "#### $72.00 dollars.", "#### 72\n#### 72", "#### Step 1\n8*9=72\n#### 72")
wrong = ("The answer is 72.", "#### 72 or 73", "#### 72\n#### 73", "#### 144/2", "#### 72k", "#### seventy-two")
for text in right + wrong:
    verdict = "right" if gsm8k.is_correct(text, "72") else "wrong"
    print(f"{text!r:34} is read as {gsm8k.extract_answer(text)!s:5} {verdict}")
ids, asked = tokenizer.encode("#### 72", add_special_tokens=False), Problem("", "", "72")
responses = [Trajectory([], ids, [0.0] * len(ids), finished) for finished in (True, False)]
ended, truncated = (tasks.grade(gsm8k, asked, response, tokenizer) for response in responses)
print(f"reward of '#### 72': {ended} if the model ended the response, {truncated} if the length limit truncated it")

# %% [markdown]
# ## Does it fit into memory?
#
# `vine_mini.app.memory` estimates the memory from the shapes alone. PyTorch's meta device builds the models of both presets
# without storing their weights. (A *preset* is a file of settings.) We assume prompts of 300 tokens and responses that reach the
# length limit. On a GPU the estimates are larger, because larger parts are computed at once (`results/README.md`).

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
        settings = TrainConfig(**read_preset(preset) | {"algorithm": algorithm})
        print(f"{algorithm}: {format_memory(estimate(model, settings, 300))}")
print(f"\nthis run: {format_memory(memory_estimate(trainer))}\n")

# %% [markdown]
# ## A few iterations
#
# We run VinePPO with the settings above and measure where its time goes. Equal states are rolled out once. As the policy's
# responses become more alike, fewer states are distinct.

# %%
before, log = trainer.evaluate(with_kl=False), []
for metrics, episodes, _ in trainer.train():
    log.append(metrics)
    seconds = ", ".join(f"{phase} {metrics[f'seconds_{phase}']:.2f} s" for phase in PHASES if f"seconds_{phase}" in metrics)
    more = metrics["rollout_tokens"] / (metrics["length"] * len(episodes.trajectories))
    print(f"iteration {metrics['iteration']}: reward {metrics['reward']:.2f}; {seconds};", end=" ")
    print(f"{metrics['unique_states']} distinct states of {metrics['states']}, {more:.1f} rollout tokens for each response token")
print(table({"before": before, "after": trainer.evaluate()}))
print("\n" + "\n".join(f"{k:19} {log[-1][k]:.2g}" for k in ("truncated", "nonzero_advantages", "kl", "clip_frac", "sampler_gap")))

# %% [markdown]
# ## Full runs
#
# | command | what it does |
# |---|---|
# | `python -m vine_mini train --preset gsm8k-qwen0.5b` | should fit a GPU with 24 GB, by the estimate; not run yet |
# | `python -m vine_mini train --preset gsm8k-rho1b` | the paper's run of RhoMath 1.1B (`gsm8k-rho1b-paper`: official options) |
# | `python -m vine_mini train --preset gsm8k-qwen0.5b --algorithm grpo` | a flag replaces a field of the preset |
# | `python -m vine_mini train --resume RUN` | continues a run, for example after Ctrl-C |
# | `python -m vine_mini evaluate --preset RUN/config.yaml --policy RUN/policy` | measures the policy with its own prompt |
#
# These metrics in `metrics.jsonl` show whether a run is healthy. `train` warns where one is far off, for example at `truncated`
# above 0.5, `nonzero_advantages` below 0.01 or `kl` above 1 (`vine_mini/health.py`).
#
# | metric | should be | if not |
# |---|---|---|
# | `truncated` | near 0 | raise `max_new_tokens`, because a truncated response counts as wrong |
# | `reward` | above 0 at the start | the model does not know the `####` line: change the prompt, or fine-tune first (`sft`) |
# | `nonzero_advantages` | well above 0 | nothing to learn: states have equal values (GRPO, RLOO: responses have equal rewards) |
# | `kl` | slowly growing | if it jumps, lower `lr` or raise `kl_coef` |
# | `clip_frac` | small | if it is large, there are too many updates on a batch, or too large ones (tutorial 6) |
# | `sampler_gap` | tiny, with `bf16` about 0.0005 | `importance_cap` 2; without `bf16`: a bug, sampler and training disagree |
#
# The learning rate of these presets is the paper's 1e-6. Fine-tuning often takes ten times as much or more. Reinforcement
# learning has many more updates, and its gradients are mostly noise. Without `lr`, models below ten million parameters get 1e-4.
#
# The paper's run has 650 iterations of 512 responses with K = 9. The picture shows its accuracy on GSM8K's test problems with
# RhoMath 1.1B (VinePPO, arXiv 2410.01679v2). This package has not repeated the run. By the plan in
# [beyond_one_gpu.md](beyond_one_gpu.md) an iteration takes half a minute on one GPU with 80 GB, and the whole run five hours.
# The plan guesses the lengths and counts neither waiting nor equal states.

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
seconds_axis.set(title="Time of an iteration", xlabel="iteration", ylabel="seconds", xticks=x)
seconds_axis.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
paper = {"SFT": 40.3, "RestEM": 42.8, "DPO+": 46.4, "PPO": 50.1, "VinePPO": 53.4}
bars = paper_axis.barh(list(paper), list(paper.values()), color=["0.7", "0.7", "0.7", COLOURS["ppo"], COLOURS["vineppo"]])
paper_axis.bar_label(bars, padding=3)
paper_axis.set(title="The paper: RhoMath 1.1B on GSM8K", xlabel="accuracy on test problems, %", xlim=(0, 65))
paper_axis.invert_yaxis()
show(figure, "10_gsm8k")

# %% [markdown]
# ## Questions
#
# 1. The cost of rollouts grows with K, the number of steps and the length. Which would you lower first, and what would you lose?
# 2. `sample_batch_size` and `micro_batch_tokens` lower the memory. Which of the printed parts does each of them change?
# 3. A policy answers right but never writes `####`. What do the metrics look like, and what does the policy learn?
# 4. Would you accept `#### 72 or 73` if 72 is right? How would a policy exploit this?
#
# No exercise.
# Read next: `vine_mini/tasks/__init__.py`, `vine_mini/tasks/gsm8k.py` and `vine_mini/app/memory.py`.
