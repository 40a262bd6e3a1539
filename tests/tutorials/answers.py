"""Right answers in several styles, and what people and language models write instead.

Each entry is (number of the exercise, a right answer, changes). A change is (text of the right answer, what stands in its place)
and makes a wrong answer. A third entry is the name of the known wrong answer that the grader takes it for; without it, the
grader must name none.
"""

ANSWERS = [
    (
        "ex01",
        """
def choose(logits, uniform, temperature, top_p):
    if temperature == 0:
        logp = torch.log_softmax(logits, dim=-1)
        token = logits.argmax(dim=-1)
        return token, logp.gather(1, token[:, None]).squeeze(1)
    logp = torch.log_softmax(logits / temperature, dim=-1)
    p = logp.exp()
    kept = p.clone()
    if top_p < 1.0:
        ranked, order = torch.sort(p, dim=-1, descending=True)
        total = ranked.cumsum(dim=-1)
        remove = total - ranked >= top_p
        kept[remove.scatter(1, order, remove)] = 0.0
    kept = kept / kept.sum(dim=-1, keepdim=True)
    token = (kept.cumsum(dim=-1) <= uniform[:, None]).sum(dim=-1)
    token = token.clamp(max=logits.shape[1] - 1)
    return token, logp.gather(1, token[:, None]).squeeze(1)
""",
        [
            ("total - ranked >= top_p", "total - ranked > top_p"),
            ("total - ranked >= top_p", "total > top_p"),
            ("total - ranked >= top_p", "total >= top_p"),
            ("total - ranked >= top_p", "ranked < 1 - top_p"),
            ("remove.scatter(1, order, remove)", "remove"),
            ("remove.scatter(1, order, remove)", "remove.gather(1, order)"),
            ("torch.log_softmax(logits, dim=-1)", "torch.log_softmax(logits / 1e-8, dim=-1)"),
            ("torch.log_softmax(logits, dim=-1)", "torch.zeros_like(logits)"),
            ("logits.argmax(dim=-1)", "logits.argmax(dim=0)"),
            ("<= uniform", "< uniform", "sum_reaches_the_number"),
            ("kept.cumsum(dim=-1) <=", "kept.cumsum(dim=-1) >="),
            ("descending=True", "descending=False"),
            (
                "kept[remove.scatter(1, order, remove)] = 0.0",
                "kept[p < ranked.masked_fill(remove, 1.0).amin(1)[:, None]] = 0.0",
                "ties_kept",
            ),
            (
                "logp = torch.log_softmax(logits / temperature, dim=-1)\n    p = logp.exp()",
                "p = (logits / temperature).exp()\n    p = p / p.sum(dim=-1, keepdim=True)\n    logp = p.log()",
                "exp_overflows",
            ),
            ("if temperature == 0:", "if temperature < 0.5:"),
            ("logp.gather(1, token[:, None]).squeeze(1)\n", "logp.gather(1, token[:, None])\n"),
            (
                "return token, logp.gather(1, token[:, None]).squeeze(1)\n",
                "return token, kept.gather(1, token[:, None])[:, 0].log()\n",
            ),
            ("return token, logp.gather(1, token[:, None]).squeeze(1)\n", "return token, p.gather(1, token[:, None])[:, 0]\n"),
            (
                "    token = (kept.cumsum(dim=-1) <= uniform[:, None]).sum(dim=-1)\n",
                "    token = torch.multinomial(kept, 1)[:, 0]\n",
            ),
            ("kept = kept / kept.sum(dim=-1, keepdim=True)", "kept = torch.softmax(kept, dim=-1)"),
        ],
    ),
    (
        "ex02",
        """
def decode_greedily(model, prompt, n):
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=torch.tensor([prompt]), past_key_values=cache).logits
    out = []
    while len(out) < n:
        out.append(int(logits[0, -1].argmax()))
        if len(out) < n:
            logits = model(input_ids=torch.tensor([out[-1:]]), past_key_values=cache).logits
    return out
""",
        [
            (
                "        out.append",
                "        if out and out[-1] == (model.config.eos_token_id or 0):\n            break\n        out.append",
            ),
            ("    cache =", "    n = min(n, 16)\n    cache ="),
            ("    cache =", "    prompt = prompt[-8:]\n    cache ="),
            ("    cache =", "    prompt = prompt[:8]\n    cache ="),
            ("    cache =", "    prompt = prompt[-12:]\n    cache ="),
            ("return out\n", "return prompt + out\n"),
            ("[out[-1:]]", "[out]"),
            ("int(logits[0, -1].argmax())", "logits[0, -1].argmax()"),
            ("int(logits[0, -1].argmax())", "int(torch.multinomial(logits[0, -1].softmax(-1), 1))"),
            ("        if len(out) < n:\n    ", "", "one_reading_too_many"),
            ("logits[0, -1].argmax()", "logits[0, -1].argmin()"),
            ("(input_ids=torch.tensor([out[-1:]]), past_key_values=cache)", "(input_ids=torch.tensor([out[-1:]]))"),
        ],
    ),
    (
        "ex03",
        """
def cut_steps(token_ids, tokenizer, *, answer_mark=None):
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    text = "".join(texts)
    starts, at, seen, newline, hidden = [0], 0, False, False, False
    for i, piece in enumerate(texts):
        body = piece.lstrip()
        before = piece[: len(piece) - len(body)]
        newline = newline or "\\n" in before
        if body:
            here = text[text.rfind("\\n", 0, at + len(before)) + 1 :].lstrip()
            if seen and (hidden or newline and not (answer_mark and here.startswith(answer_mark))):
                starts.append(i)
            seen, newline = True, "\\n" in body
            inside = zip(body.split("\\n")[1:], text[at + len(before) :].split("\\n")[1:])
            hidden = any(part.strip() and not (answer_mark and line.lstrip().startswith(answer_mark)) for part, line in inside)
        at += len(piece)
    return starts
""",
        [
            ('newline or "\\n" in before', "newline"),
            ("if seen and (", "if ("),
            ("hidden or newline", "newline", "hidden_line_lost"),
            ("seen, newline = True, ", "newline = "),
            ('True, "\\n" in body', "True, False"),
            (
                "part.strip() and not (answer_mark and line.lstrip().startswith(answer_mark))",
                "part.strip()",
                "line_from_its_token_on",
            ),
            ("here.startswith(answer_mark)", 'here.startswith("####")', "always_four_number_signs"),
            ("here.startswith(answer_mark)", "body.startswith(answer_mark)", "mark_in_one_token"),
            ("here.startswith(answer_mark)", "answer_mark in here"),
            ("here.startswith(answer_mark)", "answer_mark.startswith(body)", "first_character_of_the_mark"),
            ("here.startswith(answer_mark)", "text[at:].startswith(answer_mark)", "answer_is_a_step"),
            ("here.startswith(answer_mark)", "here.lower().startswith(answer_mark.lower())"),
            (
                "(answer_mark and here.startswith(answer_mark))",
                "here.startswith(answer_mark or '')",
                "everything_begins_with_nothing",
            ),
            ("return starts\n", "return starts[1:]\n"),
            ("return starts\n", "return [*starts, len(token_ids)]\n", "end_is_a_cut"),
            ("piece.lstrip()", 'piece.lstrip("\\n")', "spaces_are_text"),
            ("piece.lstrip()", 'piece.lstrip(" \\n")', "spaces_are_text"),
            ("    text =", '    texts = ["\\n".join(f"{t}x".splitlines())[:-1] for t in texts]\n    text =', "other_line_ends"),
            ("here.startswith(answer_mark)", "__import__('re').match(answer_mark, here)", "mark_is_a_pattern"),
            ("here.startswith(answer_mark)", "''.join(texts[i : i + 2]).lstrip().startswith(answer_mark)", "mark_in_two_tokens"),
            ("here.startswith(answer_mark)", "''.join(here.split()).startswith(answer_mark)", "mark_without_white_space"),
            ("here.startswith(answer_mark)", "here.startswith(answer_mark + ' ')", "mark_and_a_space"),
            ("here.startswith(answer_mark)", "text[at + len(before) :].startswith(answer_mark)", "line_from_its_token_on"),
            (
                "    return starts",
                "    first = answer_mark and text.lstrip().startswith(answer_mark)\n    return starts[1:] if first and starts[1:] else starts",
                "nothing_before_the_first_line",
            ),
            ("starts.append(i)", "starts.append(at)", "cut_in_text"),
            ("starts.append(i)", "starts.append(i - 1)", "newline_opens_the_step"),
            ("if body:", "if piece:", "newline_opens_the_step"),
            ("skip_special_tokens=True", "skip_special_tokens=False", "end_is_text"),
            (
                "    return starts",
                "    return sorted({0, *(i + 1 for i, t in enumerate(texts[:-1]) if '\\n' in t)})",
                "answer_is_a_step",
            ),
        ],
    ),
    (
        "ex04",
        """
def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1] / temperature
    logp = logits.log_softmax(dim=-1)
    picked = logp.gather(2, input_ids[:, 1:, None]).squeeze(-1)
    picked = torch.cat([torch.zeros_like(picked[:, :1]), picked], dim=1)
    return picked * response_mask
""",
        [
            ("picked * response_mask", "picked * attention_mask"),
            ("picked * response_mask", "picked[:, 1:] * response_mask[:, 1:]"),
            ("picked * response_mask", "picked.exp() * response_mask"),
            ("picked * response_mask", "-picked * response_mask"),
            ("picked * response_mask", "(picked * response_mask).sum(dim=1)"),
            ("picked * response_mask", "picked * response_mask / response_mask.sum(dim=1, keepdim=True)"),
            ("/ temperature", "* temperature"),
            ("log_softmax(dim=-1)", "log_softmax(dim=1)"),
            ("logits.log_softmax(dim=-1)", "logits.softmax(dim=-1)"),
            ("logits.log_softmax(dim=-1)", "logits"),
            ("logits.log_softmax(dim=-1)", "(logits.softmax(dim=-1) + 1e-8).log()"),
            ("input_ids[:, 1:, None]", "input_ids[:, :-1, None]"),
            ("attention_mask=attention_mask", "attention_mask=response_mask"),
            ("[torch.zeros_like(picked[:, :1]), picked]", "[picked, torch.zeros_like(picked[:, :1])]"),
            ("    logits =", "    model(input_ids=input_ids, attention_mask=attention_mask)\n    logits ="),
            ("    logp =", "    logits = logits.detach()\n    logp =", "without_gradients"),
            ("logits.log_softmax(dim=-1)", "logits - logits.exp().sum(dim=-1, keepdim=True).log()", "exp_overflows"),
            ("attention_mask=attention_mask", "attention_mask=(input_ids != 0).long()", "token_zero_is_padding"),
            ("/ temperature", "/ min(temperature, 1.0)", "temperature_forgotten"),
            (
                "model(input_ids=input_ids, attention_mask=attention_mask).logits",
                "model.lm_head(model.model(input_ids=input_ids, attention_mask=attention_mask)[0].detach())",
                "only_the_head_learns",
            ),
            (
                ".logits[:, :-1] / temperature\n    logp = logits.log_softmax(dim=-1)",
                ".logits[:, :-1]\n    logp = logits.log_softmax(dim=-1) / temperature",
            ),
        ],
    ),
    (
        "ex05",
        """
def monte_carlo_values(rewards):
    means = []
    for row in rewards:
        total = 0.0
        for reward in row:
            total += reward
        means.append(total / len(row))
    return means
""",
        [
            ("return means", "return [round(mean, 2) for mean in means]"),
            ("return means", "return sum(means) / len(means)"),
            ("return means", "return means[::-1]"),
            ("return means", "return sorted(means)"),
            ("return means", "return [*means, 0.0]"),
            ("return means", "return {i: mean for i, mean in enumerate(means)}"),
            ("total += reward", "total += reward > 0"),
            ("total += reward", "total += reward == 1"),
            ("total += reward", "total += round(reward)"),
            ("total += reward", "total = reward"),
            ("total / len(row)", "total / 4"),
            ("means.append(total / len(row))", "means.append(sorted(row)[len(row) // 2])"),
            ("means.append(total / len(row))", "means.append(total)"),
            ("means.append(total / len(row))", "means.append(total / (len(row) + 1))"),
            ("total / len(row)", "total / len(rewards)"),
            ("        for reward in row:", "        for reward in row[:4]:"),
            ("        means.append(", "    means.append("),
            ("    for row in rewards:", "    for row in map(set, rewards):", "equal_rewards_counted_once"),
            ("    for row in rewards:", "    for row in dict.fromkeys(map(tuple, rewards)):", "equal_states_once"),
        ],
    ),
    (
        "ex06",
        """
def step_advantages(values, reward):
    n = len(values)
    out = []
    for i in range(n):
        if i == n - 1:
            out.append(reward - values[i])
        else:
            out.append(values[i + 1] - values[i])
    return out
""",
        [
            ("if i == n - 1:", "if values[i] == values[-1]:", "last_step_by_its_value"),
            ("values[i + 1] - values[i]", "(values[i + 1] or reward) - values[i]", "zero_is_missing"),
            ("reward - values[i]", "reward"),
            ("reward - values[i]", "values[i] - reward"),
            ("reward - values[i]", "reward - values[0]", "against_the_question"),
            ("reward - values[i]", "0.0 - values[i]", "reward_forgotten"),
            ("reward - values[i]", "reward - values[i] if reward > 0 else -values[i]", "reward_forgotten"),
            ("reward - values[i]", "round(reward) - values[i]", "reward_forgotten"),
            ("reward - values[i]", "min(1.0, max(0.0, reward)) - values[i]", "reward_forgotten"),
            ("values[i + 1] - values[i]", "values[i + 1]"),
            ("values[i + 1] - values[i]", "0.99 * values[i + 1] - values[i]"),
            ("values[i + 1] - values[i]", "max(0.0, values[i + 1] - values[i])"),
            ("values[i + 1] - values[i]", "reward - values[i]", "against_the_return"),
            ("values[i + 1] - values[i]", "values[i] - values[i - 1]"),
            ("values[i + 1] - values[i]", "reward + values[i + 1] - values[i]", "reward_on_every_step"),
            ("return out", "return out[::-1]"),
            ("return out", "return [a / n for a in out]"),
            ("return out", "return torch.tensor(out)"),
            ("return out", "return [sum(out[i:]) for i in range(n)]", "against_the_return"),
            ("return out", "return [a - sum(out) / n for a in out]"),
        ],
    ),
    (
        "ex07",
        """
def spread_to_tokens(step_advantages, cuts, length):
    out, step = [], 0
    for t in range(length):
        if step + 1 < len(cuts) and t >= cuts[step + 1]:
            step += 1
        out.append(step_advantages[step])
    return out
""",
        [
            ("t >= cuts[step + 1]", "t >= cuts[step_advantages.index(step_advantages[step]) + 1]"),
            ("t >= cuts", "t > cuts", "cut_belongs_to_the_step_before"),
            ("t >= cuts", "t + 1 >= cuts"),
            ("range(length)", "range(length - 1)"),
            ("range(length)", "range(length + 1)"),
            ("range(length)", "range(cuts[-1] + 1)"),
            ("step_advantages[step])", "step_advantages[0])"),
            ("step_advantages[step])", "step_advantages[step] / len(step_advantages))"),
            ("step_advantages[step])", "float(step))"),
            ("step += 1", "step = len(cuts) - 1"),
            ("step_advantages[step])", "step_advantages[step] or out[-1])", "zeros_filled"),
            ("return out", "return [0.0 if t in cuts else a for t, a in enumerate(out)]"),
            ("return out", "return [sum(step_advantages[: [t >= c for c in cuts].count(True)]) for t in range(length)]"),
            ("return out", "return {a: 0 for a in out} and sorted(out, key=step_advantages.index)"),
        ],
    ),
    (
        "ex08",
        """
def gae(rewards, values, mask, *, gamma=1.0, lam=1.0):
    B, T = rewards.shape
    advantages = torch.zeros_like(rewards)
    for b in range(B):
        last = 0.0
        for t in range(T - 1, -1, -1):
            if mask[b, t] == 0:
                continue
            inside = t + 1 < T and mask[b, t + 1] == 1
            nextv = values[b, t + 1] if inside else 0.0
            delta = rewards[b, t] + gamma * nextv - values[b, t]
            last = delta + gamma * lam * last
            advantages[b, t] = last
    return advantages, (advantages + values) * mask
""",
        [
            ("gamma=1.0, lam=1.0", "gamma=0.99, lam=0.95", "other_defaults"),
            ("gamma=1.0, lam=1.0", "gamma=1.0, lam=0.95"),
            ("gamma * lam * last", "lam * last"),
            ("gamma * lam * last", "gamma * last", "no_lambda"),
            ("gamma * lam * last", "gamma * (1 - lam) * last", "one_delta"),
            ("gamma * lam * last", "last", "no_lambda"),
            ("gamma * nextv", "nextv", "no_gamma_on_the_next_value"),
            ("gamma * nextv", "gamma * lam * nextv"),
            ("if inside else 0.0", "if t + 1 < T else 0.0", "value_of_padding"),
            ("if inside else 0.0", "if inside else values[b, t]"),
            ("if inside else 0.0", "if inside else 1.0"),
            ("if inside else 0.0", "if inside else rewards[b, t]"),
            ("- values[b, t]\n", "\n"),
            ("    last = 0.0\n        for t", "    last = values[b, -1]\n        for t"),
            ("        last = 0.0\n", "        last = 0.0 if b == 0 else last\n"),
            ("(advantages + values) * mask", "advantages + values"),
            ("(advantages + values) * mask", "rewards * mask"),
            ("(advantages + values) * mask", "values * mask"),
            ("(advantages + values) * mask", "(advantages - values) * mask"),
            ("return advantages, (advantages + values) * mask", "return (advantages + values) * mask, advantages"),
            ("return advantages, (advantages + values) * mask", "return advantages"),
            ("range(T - 1, -1, -1)", "range(T)", "forwards"),
            ("range(T - 1, -1, -1)", "range(T - 1, 0, -1)"),
            ("range(T - 1, -1, -1)", "range(T - 2, -1, -1)"),
            (
                "    return advantages,",
                "    advantages = (advantages - advantages[mask.bool()].mean()) * mask\n    return advantages,",
            ),
            ("rewards[b, t] + gamma", "rewards[b].sum() + gamma"),
            ("rewards[b, t] + gamma", "(rewards[b, t] if not inside else 0.0) + gamma"),
        ],
    ),
    (
        "ex09",
        """
def whiten(x, mask):
    chosen = x[mask.bool()]
    mean, std = chosen.mean(), chosen.std()
    return torch.where(mask.bool(), (x - mean) / (std + EPS), torch.zeros_like(x))
""",
        [
            ("    chosen =", "    x = x.abs()\n    chosen =", "signs_lost"),
            ("(x - mean) / (std + EPS)", "((x - mean) / (std + EPS)).clamp(-3, 3)", "limited"),
            ("x[mask.bool()]\n", "x[(x * mask) != 0]\n"),
            ("x[mask.bool()]\n", "x[x != 0]\n"),
            ("chosen.std()", "(chosen.square().mean() - mean**2).clamp(min=0).sqrt()"),
            ("chosen.std()", "((chosen.square().sum() - len(chosen) * mean**2) / (len(chosen) - 1)).clamp(min=0).sqrt()"),
            ("chosen.std()", "chosen.std(correction=0)", "population_deviation"),
            ("chosen.std()", "chosen.var()"),
            ("chosen.std()", "x.std()"),
            ("chosen.std()", "(chosen - mean).abs().mean()"),
            ("chosen.mean()", "x.mean()"),
            ("chosen.mean()", "chosen.median()"),
            ("chosen.mean()", "0.0", "only_scaled"),
            ("(x - mean) / (std + EPS)", "(x - mean) / std", "no_eps"),
            ("(x - mean) / (std + EPS)", "(x - mean) / std.clamp(min=EPS)", "no_eps"),
            ("(x - mean) / (std + EPS)", "(x - mean) / (std**2 + EPS).sqrt()", "eps_under_the_root"),
            ("(x - mean) / (std + EPS)", "(x - mean) / (std + 1e-5)"),
            ("(x - mean) / (std + EPS)", "x - mean"),
            ("(x - mean) / (std + EPS)", "(x - mean) / (std + EPS) + mean"),
            ("(x - mean) / (std + EPS)", "x / (std + EPS)", "only_scaled"),
            ("torch.zeros_like(x)", "x"),
            ("torch.zeros_like(x)", "(x - mean) / (std + EPS)", "padding_not_zeroed"),
            ("mean, std = chosen.mean(), chosen.std()", "mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)"),
        ],
    ),
    (
        "ex10",
        """
def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    keep = mask.bool()
    ratio = torch.exp(logprobs[keep] - old_logprobs.detach()[keep])
    adv = advantages.detach()[keep]
    surr1 = ratio * adv
    surr2 = torch.clamp(ratio, 1 - clip, 1 + clip) * adv
    return -torch.min(surr1, surr2).mean()
""",
        [
            ("keep = mask.bool()", "keep = mask.bool() & (advantages != 0)", "zero_advantages_left_out"),
            ("surr1 = ratio * adv", "surr1 = ratio.clamp(max=10) * adv", "large_ratio_limited"),
            ("surr1 = ratio * adv", "surr1 = torch.where(adv < 0, ratio.clamp(max=3), ratio) * adv"),
            ("1 - clip, 1 + clip", "1 - 0.2, 1 + 0.2"),
            ("1 - clip, 1 + clip", "-clip, clip"),
            ("1 - clip, 1 + clip", "1 / (1 + clip), 1 + clip"),
            ("1 - clip, 1 + clip", "0.0, 1 + clip", "no_lower_clip"),
            ("1 - clip, 1 + clip", "1 - clip, 10.0", "never_clipped"),
            ("torch.clamp(ratio, 1 - clip, 1 + clip) * adv", "torch.clamp(ratio * adv, 1 - clip, 1 + clip)", "no_lower_clip"),
            ("-torch.min(surr1, surr2).mean()", "torch.min(surr1, surr2).mean()", "an_objective_not_a_loss"),
            ("-torch.min(surr1, surr2).mean()", "-torch.max(surr1, surr2).mean()", "optimistic"),
            ("-torch.min(surr1, surr2).mean()", "torch.min(-surr1, -surr2).mean()", "optimistic"),
            ("-torch.min(surr1, surr2).mean()", "-torch.min(surr1, surr2).sum()"),
            ("-torch.min(surr1, surr2).mean()", "-torch.min(surr1, surr2).sum() / len(mask)"),
            ("-torch.min(surr1, surr2).mean()", "-torch.min(surr1, surr2).sum() / mask.numel()", "mean_over_padding"),
            ("-torch.min(surr1, surr2).mean()", "-surr2.mean()", "only_the_clipped_one"),
            ("-torch.min(surr1, surr2).mean()", "-surr1.mean()", "never_clipped"),
            ("-torch.min(surr1, surr2).mean()", "-torch.min(surr1.mean(), surr2.mean())", "never_clipped"),
            ("-torch.min(surr1, surr2).mean()", "-torch.where(adv > 0, surr1, surr2).mean()", "optimistic"),
            ("-torch.min(surr1, surr2).mean()", "-torch.min(surr1, surr2).mean().item()"),
            ("logprobs[keep] - old_logprobs.detach()[keep]", "old_logprobs.detach()[keep] - logprobs[keep]"),
            ("logprobs[keep] - old_logprobs.detach()[keep]", "logprobs[keep] - logprobs.detach()[keep]"),
            ("torch.exp(logprobs[keep] - old_logprobs.detach()[keep])", "logprobs[keep] / old_logprobs.detach()[keep]"),
            ("torch.exp(logprobs[keep] - old_logprobs.detach()[keep])", "1 + logprobs[keep] - old_logprobs.detach()[keep]"),
            (
                "torch.exp(logprobs[keep] - old_logprobs.detach()[keep])",
                "torch.exp((logprobs[keep] - old_logprobs.detach()[keep]).clamp(-0.5, 0.5))",
            ),
            ("advantages.detach()[keep]", "advantages[keep]"),
            ("advantages.detach()[keep]", "(advantages[keep] - advantages[keep].mean()).detach()"),
            ("keep = mask.bool()", "keep = torch.ones_like(mask).bool()"),
            ("    surr1 =", "    ratio = ratio.clamp(1 - clip, 1 + clip)\n    surr1 =", "only_the_clipped_one"),
        ],
    ),
    (
        "ex11",
        """
def kl_penalty(logprobs, ref_logprobs, *, kind):
    log_ratio = logprobs - ref_logprobs
    return {"k1": log_ratio, "k2": 0.5 * log_ratio**2, "k3": torch.expm1(-log_ratio) + log_ratio}[kind]
""",
        [
            ("logprobs - ref_logprobs", "ref_logprobs - logprobs", "d_turned"),
            ("logprobs - ref_logprobs", "(logprobs - ref_logprobs).abs()", "absolute_k1"),
            ("logprobs - ref_logprobs", "(logprobs - ref_logprobs).clamp(min=0)"),
            ("logprobs - ref_logprobs", "(logprobs - ref_logprobs).clamp(-1, 1)"),
            ("logprobs - ref_logprobs", "logprobs.exp() - ref_logprobs.exp()"),
            ("logprobs - ref_logprobs", "logprobs.exp() * (logprobs - ref_logprobs)"),
            ("logprobs - ref_logprobs", "logprobs / ref_logprobs"),
            ("logprobs - ref_logprobs", "(logprobs - ref_logprobs).detach()", "policy_detached"),
            ("torch.expm1(-log_ratio) + log_ratio", "(torch.expm1(-log_ratio) + log_ratio).clamp(max=10)", "k3_limited"),
            ("torch.expm1(-log_ratio) + log_ratio", "torch.expm1((-log_ratio).clamp(-5, 5)) + log_ratio"),
            ("0.5 * log_ratio**2", "log_ratio**2", "no_half"),
            ("0.5 * log_ratio**2", "0.5 * log_ratio.abs()"),
            ("0.5 * log_ratio**2", "(0.5 * log_ratio) ** 2"),
            ("torch.expm1(-log_ratio) + log_ratio", "torch.expm1(log_ratio) - log_ratio", "d_turned"),
            ("torch.expm1(-log_ratio) + log_ratio", "torch.exp(-log_ratio) + log_ratio", "no_minus_one"),
            ("torch.expm1(-log_ratio) + log_ratio", "torch.expm1(-log_ratio) - log_ratio"),
            ("torch.expm1(-log_ratio) + log_ratio", "torch.exp(log_ratio) * log_ratio - torch.expm1(log_ratio)"),
            ("log_ratio}[kind]", 'log_ratio}["k3"]'),
            ("log_ratio}[kind]", "log_ratio}[kind].mean()"),
        ],
    ),
    (
        "ex12",
        """
def group_baselines(rewards):
    grpo, rloo = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for n, row in enumerate(rewards):
        if (row != row[0]).any():
            grpo[n] = (row - row.mean()) / (row.std() + EPS)
        for g in range(len(row)):
            others = torch.cat([row[:g], row[g + 1 :]])
            rloo[n, g] = row[g] - others.mean()
    return grpo, rloo
""",
        [
            ("(row != row[0]).any()", "row.std() > 1e-3", "small_deviations_are_zero"),
            ("(row != row[0]).any()", "row.std() > 0.1"),
            ("(row != row[0]).any()", "len(row) > 2 and (row != row[0]).any()"),
            ("row.std() + EPS", "row.std(correction=0) + EPS", "biased_deviation"),
            ("row.std() + EPS", "row.var() + EPS"),
            ("row.std() + EPS", "rewards.std() + EPS", "deviation_of_the_batch"),
            ("row.std() + EPS", "row.std() + 1e-4"),
            ("row.std() + EPS", "(row.var() + EPS).sqrt()"),
            ("row.std() + EPS", "row.abs().max() + EPS"),
            ("row.std() + EPS", "row.std().clamp(min=0.5)", "equal_rewards_divide_by_zero"),
            ("(row - row.mean()) / (row.std() + EPS)", "row / (row.std() + EPS)"),
            ("(row - row.mean()) / (row.std() + EPS)", "row - row.mean()", "not_divided"),
            ("(row - row.mean()) / (row.std() + EPS)", "(row - rewards.mean()) / (row.std() + EPS)", "mean_of_the_batch"),
            ("(row - row.mean()) / (row.std() + EPS)", "(row - row.median()) / (row.std() + EPS)"),
            ("others.mean()", "row.mean()", "own_reward_in_the_mean"),
            ("others.mean()", "others.max()"),
            ("others.mean()", "others.sum()"),
            ("others.mean()", "others.sum() / len(row)"),
            ("row[g] - others.mean()", "others.mean() - row[g]"),
            ("row[g] - others.mean()", "(row[g] - others.mean()) / (others.std() + EPS)"),
            ("return grpo, rloo", "return rloo, grpo"),
            ("return grpo, rloo", "return grpo, grpo"),
        ],
    ),
    (
        "ex13",
        """
def micro_batch_losses(per_token_loss, mask, rows):
    total = mask.sum()
    losses = []
    for start in range(0, len(mask), rows):
        part = mask[start : start + rows].bool()
        losses.append(per_token_loss[start : start + rows][part].sum() / total)
    return losses
""",
        [
            ("    losses = []", "    rows = -(-len(mask) // -(-len(mask) // rows))\n    losses = []", "parts_of_equal_size"),
            ("total = mask.sum()", "total = (per_token_loss * mask != 0).sum()", "zero_losses_not_counted"),
            ("[part].sum()", "[part].mean()"),
            ("[part].sum() / total", "[part].mean() * rows / len(mask)"),
            ("/ total", "/ part.sum().clamp(min=1)", "own_denominators"),
            ("/ total", "/ mask.numel()", "padding_counted"),
            ("/ total", "/ len(mask)", "divided_by_sequences"),
            ("/ total", "/ rows"),
            ("/ total", "/ (mask.sum(dim=1).max() * len(mask))", "padding_counted"),
            ("[part].sum()", ".sum()", "mask_forgotten"),
            ("range(0, len(mask), rows)", "range(0, len(mask) - rows + 1, rows)"),
            ("range(0, len(mask), rows)", "range(0, len(mask), 1)"),
            ("range(0, len(mask), rows)", "range(0, len(mask) // rows)"),
            ("        losses.append", "        if part.any():\n            losses.append", "empty_parts_left_out"),
            ("        losses.append", "        if len(part) == rows:\n            losses.append"),
            ("return losses", "return [x * len(losses) for x in losses]"),
            ("return losses", "return [x.detach() for x in losses]"),
            ("return losses", "return [x.item() for x in losses]"),
            ("return losses", "return sum(losses)"),
            ("return losses", "return torch.stack(losses)"),
            ("return losses", "return losses[::-1]"),
            ("return losses", "return [sum(losses[: i + 1]) for i in range(len(losses))]"),
        ],
    ),
    (
        "ex14",
        """
def rope(x, positions):
    d = x.shape[-1]
    w = 1.0 / 10000 ** (torch.arange(0, d, 2) / d)
    angle = positions[:, None, :, None] * w
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], d // 2, 2).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)
""",
        [
            ("positions[:, None, :, None]", "positions[:, :, None, None]"),
            ("positions[:, None, :, None]", "positions[0, :, None]", "positions_of_the_first_row"),
            ("positions[:, None, :, None]", "positions[..., None]"),
            ("positions[:, None, :, None]", "(positions - positions[:, :1])[:, None, :, None]"),
            ("positions[:, None, :, None]", "(positions % 2048)[:, None, :, None]"),
            ("positions[:, None, :, None]", "positions.clamp(max=512)[:, None, :, None]"),
            ("positions[:, None, :, None]", "positions.clamp(max=49_999)[:, None, :, None]"),
            ("10000 **", "(10000 if positions.max() <= 65_536 else 500_000) **"),
            ("return torch", "if d > 8:\n        turned[..., 4:] = pairs[..., 4:]\n    return torch"),
            ("positions[:, None, :, None]", "positions.sort(dim=1).values[:, None, :, None]"),
            ("positions[:, None, :, None]", "torch.arange(x.shape[2])[None, None, :, None]", "index_instead_of_position"),
            ("positions[:, None, :, None]", "(positions + 1)[:, None, :, None]", "counted_from_one"),
            ("positions[:, None, :, None]", "-positions[:, None, :, None]", "turned_backwards"),
            ("10000 **", "1000 **"),
            ("10000 **", "500000 **"),
            ("(torch.arange(0, d, 2) / d)", "(torch.arange(d // 2) / d)", "frequency_without_the_two"),
            ("(torch.arange(0, d, 2) / d)", "(torch.arange(1, d, 2) / d)"),
            ("(torch.arange(0, d, 2) / d)", "(torch.arange(2, d + 2, 2) / d)"),
            ("w = 1.0 / 10000 ** (torch.arange(0, d, 2) / d)", "w = 10000 ** (torch.arange(0, d, 2) / d)"),
            ("(torch.arange(0, d, 2) / d)", "torch.arange(0, d, 2, dtype=torch.float32).div(d)"),
            (".flatten(-2)", ".transpose(-1, -2).flatten(-2)", "not_put_back_in_pairs"),
            (".flatten(-2)", ".flatten(-2) + x"),
            ("x.reshape(*x.shape[:-1], d // 2, 2)", "x.reshape(*x.shape[:-1], 2, d // 2).transpose(-1, -2)"),
            ("return torch", "if d > 4:\n        turned[..., 2:] = pairs[..., 2:]\n    return torch"),
        ],
    ),
    (
        "ex15",
        """
def alibi_bias(distance, heads):
    ratio = 2 ** (-8 / heads)
    slopes = [ratio ** (k + 1) for k in range(heads)]
    return torch.stack([-slope * distance.double() for slope in slopes], dim=1)
""",
        [
            ("distance.double()", "distance.double().clamp(max=16)", "distance_limited"),
            ("2 ** (-8 / heads)", "(0.5 if heads == 1 else 2 ** (-8 / heads))", "without_the_eight"),
            ("ratio ** (k + 1)", "ratio**k", "slopes_from_one"),
            ("ratio ** (k + 1)", "ratio ** (heads - k)"),
            ("ratio ** (k + 1)", "ratio", "one_slope"),
            ("ratio ** (k + 1)", "ratio * (k + 1)"),
            ("ratio ** (k + 1)", "1 / 2 ** (k + 1)"),
            ("2 ** (-8 / heads)", "2 ** (-1 / heads)", "without_the_eight"),
            ("2 ** (-8 / heads)", "2 ** -(8 // heads)", "rounded_exponent"),
            ("2 ** (-8 / heads)", "2 ** (8 / heads)"),
            ("2 ** (-8 / heads)", "2 ** (-heads / 8)"),
            ("2 ** (-8 / heads)", "0.5"),
            ("-slope *", "slope *", "nearer_is_punished"),
            ("-slope * distance.double()", "-slope * distance.double().abs()"),
            ("-slope * distance.double()", "-slope * distance.double().clamp(min=0)"),
            ("-slope * distance.double()", "-slope * distance.double() ** 2"),
            ("-slope * distance.double()", "-slope * (distance.double() + 1)"),
            ("-slope * distance.double()", "-slope / (1 + distance.double())"),
            ("-slope * distance.double()", "-slope * (distance.double() - distance.amax(-1, keepdim=True))"),
            ("dim=1", "dim=-1", "heads_last"),
            ("dim=1", "dim=2"),
            ("distance.double()", "distance[:1].double().expand(distance.shape)"),
        ],
    ),
    (
        "ex16",
        """
@torch.no_grad()
def write_position(layer, length):
    for weight in (layer.attention.qkv.weight, layer.attention.out.weight, layer.up.weight, layer.down.weight):
        weight.fill_(0.0)
    d = layer.attention.out.weight.shape[0]
    layer.attention.qkv.weight[2 * d, IS_BOS] = 1.0
    layer.attention.out.weight[POSITION, 0] = 1.0
    for j in range(1, length + 1):
        layer.up.weight[j - 1, ONE] = 1.0 / j
        layer.up.weight[j - 1, POSITION] = -1.0
        layer.down.weight[POSITION, j - 1] = 3.0 if j == 1 else 2.0 * j
""",
        [
            (
                "    for weight in (layer.attention.qkv.weight, ",
                "    layer.attention.qkv.weight[2 * layer.up.weight.shape[1] :] = 0\n    for weight in (",
                "keys_not_zeroed",
            ),
            (
                "    for weight in (layer.attention.qkv.weight, ",
                "    layer.attention.qkv.weight[: 2 * layer.up.weight.shape[1]] = 0\n    for weight in (",
                "value_not_zeroed",
            ),
            ("(layer.attention.qkv.weight, layer.attention.out.weight,", "(layer.attention.qkv.weight,", "out_not_zeroed"),
            ("layer.up.weight, layer.down.weight)", "layer.down.weight)", "up_not_zeroed"),
            ("layer.up.weight, layer.down.weight)", "layer.up.weight)", "down_not_zeroed"),
            ("fill_(0.0)", "mul_(0.1)"),
            ("2 * d, IS_BOS", "d, IS_BOS"),
            ("2 * d, IS_BOS", "2 * d, ONE", "value_reads_the_constant"),
            ("2 * d, IS_BOS", "0, IS_BOS"),
            ("out.weight[POSITION, 0]", "out.weight[0, POSITION]"),
            ("out.weight[POSITION, 0]", "out.weight[ONE, 0]"),
            ("3.0 if j == 1", "2.0 if j == 1", "share_not_taken_away"),
            ("3.0 if j == 1", "1.0 if j == 1"),
            ("2.0 * j", "1.0 * j", "slopes_not_doubled"),
            ("2.0 * j", "3.0 * j"),
            ("2.0 * j", "j * (j + 1.0)"),
            ("= 1.0 / j", "= 1.0 / (j + 1)"),
            ("range(1, length + 1)", "range(1, length)"),
            ("range(1, length + 1)", "range(1, min(length, 16) + 1)"),
            ("range(1, length + 1)", "range(1, min(length, d) + 1)"),
            ("POSITION] = -1.0", "POSITION] = 1.0"),
        ],
    ),
    (
        "ex17",
        """
def token_mean_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
""",
        [
            ("labels[:, 1:]", "labels[:, :-1]"),
            ("logits[:, :-1].flatten(0, 1), labels[:, 1:]", "logits.flatten(0, 1), labels"),
            ("logits[:, :-1].flatten(0, 1), labels[:, 1:]", "logits[:, 1:].flatten(0, 1), labels[:, :-1]"),
            ("ignore_index=-100", "ignore_index=-100, reduction='sum'"),
            ("ignore_index=-100", "ignore_index=-100, label_smoothing=0.1"),
            ("ignore_index=-100)", "ignore_index=-100, reduction='none').mean()"),
            ("ignore_index=-100)", "ignore_index=-100, reduction='none').view(len(labels), -1).sum(1).mean()"),
            (
                "labels[:, 1:].flatten(), ignore_index=-100",
                "labels[:, 1:].flatten().clamp(min=0), ignore_index=0",
                "mask_excludes_token_zero",
            ),
            ("labels[:, 1:].flatten(), ignore_index=-100", "labels[:, 1:].flatten().clamp(min=0)", "mask_of_the_changed_targets"),
            (
                "labels[:, 1:].flatten(), ignore_index=-100",
                "labels[:, 1:].abs().flatten() % logits.shape[-1]",
                "mask_of_the_changed_targets",
            ),
            (
                "    return",
                "    labels, keep = labels.clone(), (labels != -100).long()\n"
                "    between = (keep.cumsum(1) > 0) & (keep.flip(1).cumsum(1).flip(1) > 0)\n"
                "    labels[between & (labels == -100)] = 0\n"
                "    return",
                "gaps_learned",
            ),
            ("    return", "    labels[labels == 0] = -100\n    return"),
            ("    return", "    logits = logits.detach()\n    return"),
            ("    return", "    logits = logits.softmax(-1)\n    return"),
            ("    return ", "    return -"),
        ],
    ),
    (
        "ex18",
        """
def response_mask(input_ids, prompt_lengths, eos):
    mask = torch.zeros(input_ids.shape, dtype=torch.float64)
    for b, n in enumerate(prompt_lengths):
        for t in range(n, input_ids.shape[1]):
            mask[b, t] = 1.0
            if input_ids[b, t] == eos:
                break
    return mask
""",
        [
            ("== eos", "== 2", "end_is_always_two"),
            ("== eos", "== input_ids[b, -1]", "without_the_last_response_token"),
            ("== eos", "!= eos"),
            ("range(n, input_ids.shape[1])", "range(n + 1, input_ids.shape[1])"),
            ("range(n, input_ids.shape[1])", "range(n - 1, input_ids.shape[1])"),
            ("range(n, input_ids.shape[1])", "range(n, input_ids.shape[1] - 1)", "without_the_last_response_token"),
            ("range(n, input_ids.shape[1])", "range(input_ids.shape[1])"),
            ("range(n, input_ids.shape[1])", "range(prompt_lengths[0], input_ids.shape[1])"),
            (
                "            mask[b, t] = 1.0\n            if input_ids[b, t] == eos:\n                break\n",
                "            if input_ids[b, t] == eos:\n                break\n            mask[b, t] = 1.0\n",
                "end_is_padding",
            ),
            (
                "                break",
                "                mask[b, t + 1 : t + 2] = 1.0\n                break",
                "one_token_of_padding",
            ),
            ("                break", "                pass", "everything_after_the_prompt"),
            ("                break", "                mask[b, t] = 0.0", "end_is_padding"),
            ("return mask", "return mask.bool()"),
            ("return mask", "return mask.float()"),
            ("return mask", "return mask[:, 1:]"),
            ("return mask", "return 1 - mask"),
            ("return mask", "return mask.cumsum(dim=1)"),
        ],
    ),
    (
        "ex19",
        """
def policy_gradient_loss(logprobs, advantages, mask):
    keep = mask.bool()
    return -(advantages.detach()[keep] * logprobs[keep]).mean()
""",
        [
            ("return -", "return ", "pushed_away"),
            ("keep = mask.bool()", "keep = mask.bool() & (advantages != 0)", "zero_advantages_not_counted"),
            ("logprobs[keep]", "logprobs[keep].clamp(min=-10)"),
            (".mean()", ".sum()", "not_divided"),
            (".mean()", ".sum() / len(mask)", "not_divided"),
            (".mean()", ".sum() / mask.numel()", "over_all_entries"),
            ("logprobs[keep]", "logprobs[keep].exp()", "probabilities"),
            ("logprobs[keep]", "logprobs.detach()[keep]"),
            ("logprobs[keep]", "(logprobs - logprobs.detach()).exp()[keep]"),
            ("advantages.detach()[keep]", "advantages[keep]", "advantages_learn"),
            ("advantages.detach()[keep]", "advantages.detach()[keep].clamp(min=0)"),
            ("advantages.detach()[keep]", "advantages.detach()[keep].abs()"),
            ("advantages.detach()[keep]", "advantages.detach()[keep].sign()"),
            ("advantages.detach()[keep]", "(advantages - advantages[keep].mean()).detach()[keep]"),
            ("advantages.detach()[keep] * logprobs[keep]", "advantages.detach()[keep] + logprobs[keep]"),
            (
                "(advantages.detach()[keep] * logprobs[keep]).mean()",
                "advantages.detach()[keep].mean() * logprobs[keep].mean()",
                "one_for_each_response",
            ),
            (
                "(advantages.detach()[keep] * logprobs[keep]).mean()",
                "(advantages.detach() * mask * logprobs).sum(1).mean()",
                "not_divided",
            ),
            ("keep = mask.bool()", "keep = torch.ones_like(mask).bool()", "with_padding"),
            ("keep = mask.bool()", "keep = advantages != 0", "with_padding"),
        ],
    ),
    (
        "ex20",
        """
def step_advantages(values, reward, *, lam, mu):
    n = len(values)
    q, b = [reward] * n, [values[0]] * n
    for i in range(n - 2, -1, -1):
        q[i] = (1 - lam) * values[i + 1] + lam * q[i + 1]
    for i in range(1, n):
        b[i] = (1 - mu) * values[i] + mu * b[i - 1]
    return [q[i] - b[i] for i in range(n)]
""",
        [
            ("(1 - lam) * values[i + 1] + lam * q[i + 1]", "lam * values[i + 1] + (1 - lam) * q[i + 1]"),
            ("(1 - lam) * values[i + 1]", "values[i + 1]", "sum_without_a_share"),
            ("(1 - lam) * values[i + 1]", "(1 - lam) * values[i]"),
            ("(1 - mu) * values[i] +", "(1 - mu) * values[i - 1] +"),
            ("(1 - mu) * values[i]", "values[i]"),
            ("lam * q[i + 1]", "lam * reward"),
            ("mu * b[i - 1]", "mu * values[0]"),
            ("mu * b[i - 1]", "mu * values[i - 1]"),
            ("[reward] * n, [values[0]] * n", "[reward] * n, [0.0] * n"),
            ("[reward] * n, [values[0]] * n", "[0.0] * n, [values[0]] * n"),
            ("q[i] - b[i] for", "b[i] - q[i] for"),
            ("q[i] - b[i] for", "q[i] - values[i] for", "mu_forgotten"),
            ("q[i] - b[i] for", "q[i] for"),
            ("range(n - 2, -1, -1)", "range(n - 1)"),
            ("range(n - 2, -1, -1)", "range(n - 2, 0, -1)"),
            ("range(n)]", "range(n - 1)]"),
        ],
    ),
    (
        "ex20",
        """
def step_advantages(values, reward, *, lam, mu):
    v = list(values) + [reward]
    n, out, base = len(values), [], values[0]
    for i in range(n):
        base = (1 - mu) * v[i] + mu * base
        q = lam ** (n - 1 - i) * reward
        for j in range(i + 1, n):
            q += (1 - lam) * lam ** (j - i - 1) * v[j]
        out.append(q - base)
    return out
""",
        [
            ("lam ** (n - 1 - i)", "lam ** (n - i)", "reward_is_averaged"),
            ("lam ** (j - i - 1)", "lam ** (j - i)"),
            ("range(i + 1, n)", "range(i, n)"),
            ("range(i + 1, n)", "range(i + 1, n + 1)"),
        ],
    ),
    (
        "ex21",
        """
def dpo_positive_loss(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    d_right, d_wrong = right - ref_right.detach(), wrong - ref_wrong.detach()
    margin = d_right - d_wrong - penalty * torch.relu(-d_right)
    return torch.nn.functional.softplus(-beta * margin).mean()
""",
        [
            ("relu(-d_right)", "relu(d_right)", "more_likely_punished"),
            ("relu(-d_right)", "relu(-d_wrong)", "wrong_punished"),
            ("relu(-d_right)", "relu(-right)"),
            ("relu(-d_right)", "relu(d_wrong - d_right)"),
            ("torch.relu(-d_right)", "-d_right"),
            ("- penalty * torch.relu(-d_right)", "", "plain_dpo"),
            ("- penalty", "+ penalty", "rewarded"),
            ("- penalty", "- penalty / beta", "beta_only_on_the_difference"),
            ("- penalty * torch.relu(-d_right)", "- penalty * torch.relu(-d_right).detach()"),
            ("d_right - d_wrong", "d_right + d_wrong"),
            ("d_right - d_wrong", "d_wrong - d_right"),
            ("right - ref_right.detach(), wrong - ref_wrong.detach()", "right - wrong, ref_right.detach() - ref_wrong.detach()"),
            ("right - ref_right.detach()", "right"),
            ("ref_right.detach()", "ref_right"),
            ("ref_right.detach(), wrong", "ref_right.detach(), wrong.detach()"),
            ("softplus(-beta * margin)", "softplus(beta * margin)"),
            ("softplus(-beta * margin)", "softplus(-margin)"),
            ("softplus(-beta * margin)", "softplus(-margin) * beta"),
            ("softplus(-beta * margin)", "softplus(-margin / beta)"),
            ("torch.nn.functional.softplus(-beta * margin)", "-torch.sigmoid(beta * margin)"),
            ("torch.nn.functional.softplus(-beta * margin)", "-torch.log(torch.sigmoid(beta * margin))", "log_of_sigmoid"),
            ("torch.nn.functional.softplus(-beta * margin)", "-torch.log(torch.sigmoid(beta * margin) + 1e-8)"),
            ("torch.nn.functional.softplus(-beta * margin)", "torch.log(1 + torch.exp(-beta * margin))", "log_of_sigmoid"),
            ("torch.nn.functional.softplus(-beta * margin)", "torch.relu(1 - beta * margin)"),
            ("softplus(-beta * margin).mean()", "softplus(-beta * margin).sum()", "pairs_summed"),
            ("softplus(-beta * margin).mean()", "softplus(-beta * margin.mean())", "one_margin"),
        ],
    ),
    (
        "ex22",
        """
def forget_bias(log_f):
    T = log_f.shape[-1]
    total = torch.cumsum(log_f, dim=-1)
    bias = total[..., :, None] - total[..., None, :]
    later = torch.arange(T)[None, :] > torch.arange(T)[:, None]
    return bias.masked_fill(later, float("-inf"))
""",
        [
            ("dim=-1)", "dim=1)", "not_summed_over_tokens"),
            ("dim=-1)", "dim=0)", "not_summed_over_tokens"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f.clamp(min=-5), dim=-1)", "gates_limited"),
            ("bias.masked_fill", "bias.clamp(min=-20).masked_fill"),
            ("torch.cumsum(log_f, dim=-1)", "log_f", "not_summed_over_tokens"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f.exp(), dim=-1)"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumprod(log_f, dim=-1)"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f, dim=-1) - log_f"),
            ("torch.cumsum(log_f, dim=-1)", "torch.logcumsumexp(log_f, dim=-1)"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f[:, :1].expand_as(log_f), dim=-1)", "one_gate_for_all_heads"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f.flip(-1), dim=-1).flip(-1)"),
            ("torch.cumsum(log_f, dim=-1)", "torch.cumsum(log_f.mean(dim=-1, keepdim=True).expand_as(log_f), dim=-1)"),
            ("total[..., :, None] - total[..., None, :]", "total[..., None, :] - total[..., :, None]", "remembered_more"),
            ("total[..., :, None] - total[..., None, :]", "total[..., :, None] + total[..., None, :]"),
            ("total[..., None, :]", "total[..., None, :] + log_f[..., None, :]", "gate_of_the_key_too"),
            ("total[..., None, :]", "total[..., None, :1]"),
            ("torch.arange(T)[None, :] > torch.arange(T)[:, None]", "torch.arange(T)[None, :] >= torch.arange(T)[:, None]"),
            ("torch.arange(T)[None, :] > torch.arange(T)[:, None]", "torch.arange(T)[None, :] < torch.arange(T)[:, None]"),
            ('float("-inf")', "0.0", "zero_for_the_future"),
            ('float("-inf")', 'float("inf")'),
            ('float("-inf")', "-1e9"),
            ('bias.masked_fill(later, float("-inf"))', "bias", "future_visible"),
            ('bias.masked_fill(later, float("-inf"))', "bias.tril()", "zero_for_the_future"),
            ('bias.masked_fill(later, float("-inf"))', 'bias.exp().masked_fill(later, float("-inf"))', "product_of_gates"),
            ('bias.masked_fill(later, float("-inf"))', 'bias.masked_fill(later, float("-inf")).exp()'),
            (
                'bias.masked_fill(later, float("-inf"))',
                'bias.masked_fill(later, float("-inf")).transpose(-1, -2)',
                "keys_before_queries",
            ),
            ('bias.masked_fill(later, float("-inf"))', 'bias.masked_fill(later, float("-inf"))[:, 0]'),
        ],
    ),
    (
        "ex01",
        """
def choose(logits, uniform, temperature, top_p):
    tokens, scores = [], []
    for row, u in zip(logits, uniform.tolist()):
        p = torch.softmax(row / (temperature if temperature else 1.0), dim=0)
        best = int(p.argmax())
        if temperature != 0:
            kept, total = set(), 0.0
            for i in sorted(range(len(p)), key=lambda i: -p[i].item()):
                kept.add(i)
                total += p[i].item()
                if top_p < 1 and total >= top_p:
                    break
            mass = sum(p[i].item() for i in kept)
            reached = 0.0
            for i in range(len(p)):
                if i in kept:
                    reached += p[i].item() / mass
                    best = i
                    if reached > u:
                        break
        tokens.append(best)
        scores.append(p[best].log())
    return torch.tensor(tokens), torch.stack(scores)
""",
        [],
    ),
    (
        "ex02",
        """
def decode_greedily(model, prompt, n):
    cache, out, ids = DynamicCache(config=model.config), [], list(prompt)
    with torch.no_grad():
        for _ in range(n):
            step = model(input_ids=torch.tensor(ids).unsqueeze(0), past_key_values=cache, use_cache=True)
            ids = [step.logits[:, -1, :].argmax(dim=-1).item()]
            out += ids
    return out
""",
        [],
    ),
    (
        "ex03",
        """
def cut_steps(token_ids, tokenizer, *, answer_mark=None):
    pieces = [tokenizer.decode([i], skip_special_tokens=True) for i in token_ids]
    begins = [sum(map(len, pieces[:i])) for i in range(len(pieces) + 1)]
    text = "".join(pieces)
    visible = [begins[i] + len(p) - len(p.lstrip()) if p.strip() else None for i, p in enumerate(pieces)]
    cuts, last = [], None
    for i, at in enumerate(visible):
        if at is None:
            continue
        if last is not None:
            lines = [text[j + 1 :].split("\\n")[0].lstrip() for j in range(last, at) if text[j] == "\\n"]
            if any(line and not (answer_mark and line.startswith(answer_mark)) for line in lines):
                cuts.append(i)
        last = at
    return [0] + cuts
""",
        [],
    ),
    (
        "ex03",
        """
def cut_steps(token_ids, tokenizer, *, answer_mark=None):
    text, first = "", {}  # first: token -> the place of its first visible character
    for i, token in enumerate(token_ids):
        for character in tokenizer.decode([token], skip_special_tokens=True):
            if not character.isspace():
                first.setdefault(i, len(text))
            text += character
    step, steps, seen = 0, [], False  # steps: of each line
    for line in text.split("\\n"):
        visible = bool(line.strip())
        if visible and seen and not (answer_mark and line.lstrip().startswith(answer_mark)):
            step += 1
        seen = seen or visible
        steps.append(step)
    cuts, last = [0], 0
    for i, at in first.items():
        now = steps[text.count("\\n", 0, at)]
        if now != last:
            cuts.append(i)
        last = now
    return cuts
""",
        [],
    ),
    (
        "ex04",
        """
def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    rows, columns = response_mask.nonzero(as_tuple=True)
    before = logits[rows, columns - 1] / temperature
    scores = before[torch.arange(len(rows)), input_ids[rows, columns]] - before.logsumexp(dim=-1)
    return torch.zeros_like(response_mask).index_put((rows, columns), scores)
""",
        [],
    ),
    (
        "ex04",
        """
def response_logprobs(model, input_ids, attention_mask, response_mask, *, temperature=1.0):
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.div(temperature)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
    return torch.nn.functional.pad(-loss, (1, 0)) * response_mask
""",
        [],
    ),
    (
        "ex05",
        """
def monte_carlo_values(rewards):
    from statistics import fmean
    return list(map(fmean, rewards))
""",
        [],
    ),
    (
        "ex05",
        """
def monte_carlo_values(rewards):
    return [torch.tensor(row, dtype=torch.float64).mean().item() for row in rewards]
""",
        [],
    ),
    (
        "ex06",
        """
def step_advantages(values, reward):
    v = torch.tensor(list(values) + [reward], dtype=torch.float64)
    return (v[1:] - v[:-1]).tolist()
""",
        [],
    ),
    (
        "ex06",
        """
def step_advantages(values, reward):
    r, v = [0.0] * (len(values) - 1) + [reward], [*values, 0.0]
    return [r[i] + v[i + 1] - v[i] for i in range(len(values))]
""",
        [],
    ),
    (
        "ex07",
        """
def spread_to_tokens(step_advantages, cuts, length):
    sizes = torch.tensor([*cuts, length]).diff()
    return torch.tensor(step_advantages, dtype=torch.float64).repeat_interleave(sizes).tolist()
""",
        [],
    ),
    (
        "ex07",
        """
def spread_to_tokens(step_advantages, cuts, length):
    from bisect import bisect_right
    return [step_advantages[bisect_right(cuts, t) - 1] for t in range(length)]
""",
        [],
    ),
    (
        "ex08",
        """
def gae(rewards, values, mask, *, gamma=1.0, lam=1.0):
    r, v = torch.where(mask > 0, rewards, 0.0), torch.where(mask > 0, values, 0.0)
    T = r.shape[1]
    delta = r + gamma * torch.nn.functional.pad(v, (0, 1))[:, 1:] - v
    delta = torch.where(mask > 0, delta, 0.0)
    gap = torch.arange(T)[:, None] - torch.arange(T)
    weight = torch.where(gap >= 0, (gamma * lam) ** gap.clamp(min=0).double(), 0.0)
    advantages = (delta @ weight) * mask
    return advantages, advantages + v
""",
        [],
    ),
    (
        "ex09",
        """
def whiten(x, mask):
    n = mask.sum()
    x = x * mask
    mean = x.sum() / n
    centred = (x - mean) * mask
    return centred / ((centred**2).sum().div(n - 1).sqrt() + EPS)
""",
        [],
    ),
    (
        "ex10",
        """
def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    log_ratio = torch.where(mask == 1, logprobs - old_logprobs.detach(), torch.zeros_like(logprobs))
    ratio, a = log_ratio.exp(), advantages.detach()
    bound = torch.where(a > 0, 1 + clip, 1 - clip)
    objective = torch.where(a > 0, torch.minimum(ratio, bound), torch.maximum(ratio, bound)) * a
    return -(objective * mask).sum() / mask.sum()
""",
        [],
    ),
    (
        "ex10",
        """
def clipped_policy_loss(logprobs, old_logprobs, advantages, mask, *, clip=0.2):
    total = 0.0
    for b, t in mask.nonzero().tolist():
        a, r = float(advantages[b, t]), (logprobs[b, t] - float(old_logprobs[b, t])).exp()
        far = r > 1 + clip if a > 0 else r < 1 - clip
        total = total - a * (r.detach().clamp(1 - clip, 1 + clip) if far else r)  # of far tokens alone: no graph at all
    return total / mask.sum()
""",
        [],
    ),
    (
        "ex11",
        """
def kl_penalty(logprobs, ref_logprobs, *, kind):
    d = ref_logprobs - logprobs
    if kind == "k1":
        return logprobs - ref_logprobs
    return d.pow(2).div(2) if kind == "k2" else torch.exp(d) - 1 - d
""",
        [],
    ),
    (
        "ex12",
        """
def group_baselines(rewards):
    G = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)
    std = (centred.pow(2).sum(1, keepdim=True) / (G - 1)).sqrt()
    return centred / (std + EPS), centred * G / (G - 1)
""",
        [],
    ),
    (
        "ex13",
        """
def micro_batch_losses(per_token_loss, mask, rows):
    weights = mask / mask.sum()
    return [(x * w).sum() for x, w in zip(per_token_loss.split(rows), weights.split(rows))]
""",
        [],
    ),
    (
        "ex14",
        """
def rope(x, positions):
    B, H, T, d = x.shape
    out = torch.empty_like(x)
    for j in range(d // 2):
        angle = positions.unsqueeze(1).to(x.dtype) * 10000 ** (-2 * j / d)
        c, s = angle.cos(), angle.sin()
        out[..., 2 * j] = x[..., 2 * j] * c - x[..., 2 * j + 1] * s
        out[..., 2 * j + 1] = x[..., 2 * j] * s + x[..., 2 * j + 1] * c
    return out
""",
        [],
    ),
    (
        "ex14",
        """
def rope(x, positions):
    d = x.shape[-1]
    w = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(0, d, 2) / d).repeat_interleave(2)
    angle = torch.einsum("bt,i->bti", positions.to(w.dtype), w)[:, None]
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).reshape(x.shape)
    return x * angle.cos() + swapped * angle.sin()
""",
        [],
    ),
    (
        "ex15",
        """
def alibi_bias(distance, heads):
    slopes = torch.pow(2.0, -8.0 * torch.arange(1, heads + 1) / heads)
    return torch.einsum("h,bqk->bhqk", -slopes, distance.to(slopes.dtype))
""",
        [],
    ),
    (
        "ex16",
        """
@torch.no_grad()
def write_position(layer, length):
    D = layer.attention.out.weight.shape[0]
    queries, keys, values = layer.attention.qkv.weight.chunk(3)
    keys.zero_()
    values.zero_()[D - 1, IS_BOS] = 2.0  # the last number of the last head, halved by the output projection
    layer.attention.out.weight.zero_()[POSITION, D - 1] = 0.5
    layer.up.weight.zero_()
    layer.down.weight.zero_()
    for unit, j in enumerate(range(length, 0, -1)):
        layer.up.weight[unit, [ONE, POSITION]] = torch.tensor([1.0, -j])
        layer.down.weight[POSITION, unit] = 3.0 if j == 1 else 2.0
""",
        [],
    ),
    (
        "ex17",
        """
def token_mean_loss(logits, labels):
    targets = labels[:, 1:]
    learn = targets != -100
    logprobs = logits[:, :-1].log_softmax(dim=-1)
    return -logprobs[learn].gather(1, targets[learn][:, None]).mean()
""",
        [],
    ),
    (
        "ex18",
        """
def response_mask(input_ids, prompt_lengths, eos):
    after = torch.arange(input_ids.shape[1]) >= torch.tensor(prompt_lengths)[:, None]
    ends = (input_ids == eos) & after
    return (after & (ends.cumsum(dim=1) - ends.long() == 0)).double()
""",
        [],
    ),
    (
        "ex19",
        """
def policy_gradient_loss(logprobs, advantages, mask):
    weights = advantages.detach() * mask / mask.sum()
    return torch.einsum("bt,bt->", -weights, logprobs)
""",
        [],
    ),
    (
        "ex20",
        """
def step_advantages(values, reward, *, lam, mu):
    ahead = [*values[1:], reward]

    def q(i):
        return reward if i == len(values) - 1 else (1 - lam) * ahead[i] + lam * q(i + 1)

    def b(i):
        return values[0] if i == 0 else (1 - mu) * values[i] + mu * b(i - 1)

    return [q(i) - b(i) for i in range(len(values))]
""",
        [],
    ),
    (
        "ex21",
        """
def dpo_positive_loss(right, wrong, ref_right, ref_wrong, *, beta, penalty):
    with torch.no_grad():
        reference = torch.stack([ref_right, ref_wrong]).clone()
    d = torch.stack([right, wrong]) - reference
    margin = d[0] - d[1] + penalty * d[0].clamp(max=0)
    zero = torch.zeros_like(margin)
    return torch.logaddexp(zero, -beta * margin).mean()
""",
        [],
    ),
    (
        "ex22",
        """
def forget_bias(log_f):
    B, H, T = log_f.shape
    rows = []
    for t in range(T):
        seen = log_f[..., 1 : t + 1]
        past = torch.cat([seen.flip(-1).cumsum(-1).flip(-1), torch.zeros(B, H, 1, dtype=log_f.dtype)], dim=-1)
        rows.append(torch.cat([past, torch.full((B, H, T - t - 1), -torch.inf, dtype=log_f.dtype)], dim=-1))
    return torch.stack(rows, dim=-2)
""",
        [],
    ),
]
