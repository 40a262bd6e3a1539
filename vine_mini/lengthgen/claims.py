"""The paper's claims, judged by the results of `lengthgen study`: differences with intervals, and verdicts.

Each finding is a number that the claim says is positive. Its interval has a level of 95 %. It is Student's t over the seeds, or a
jackknife over families of tasks (copy with its variants is one). Below eight families there is no interval. No finding is
corrected for the number of the others.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from vine_mini.app import intervals
from vine_mini.app.tables import columns
from vine_mini.lengthgen import paper, ranking, report
from vine_mini.lengthgen.attention import SAME_SEED
from vine_mini.lengthgen.own import short
from vine_mini.types import UserError

CLAIMS = {
    "rank": "mean reciprocal rank over tasks and seeds: NoPE, T5, ALiBi, RoPE, sinusoids, in this order (figure 1)",
    "rank, more updates": "the same with four times the updates",
    "accuracy": "NoPE has a higher mean accuracy on longer inputs than each explicit encoding (section 4)",
    "accuracy, more updates": "the same with four times the updates",
    "level: nope": "NoPE is at most 10 points below the paper, on the rows where the paper's NoPE is above 25 %",
    "level: nope, more updates": "the same with four times the updates",
    "level: t5": "T5 is at most 10 points below the paper, on the same rows",
    "level: t5, more updates": "the same with four times the updates",
    "attention": "NoPE's attention is nearer to T5's than to the other encodings' (section 5.2)",
    "attention, learned": "the same, only with models that have learned the seen lengths, where some have not",
    "positions": "a trained NoPE writes positions in its first layer (Theorem 1); what training adds to random weights",
    "frequencies": "in heads of 16 dimensions, RoPE on a quarter (two pairs turn) is better than on the whole head (eight pairs)",
    "scratchpad": "the full scratchpad helps or hurts as in the paper: it helps on addition, and not in general (section 6)",
    "scratchpad parts": "a part helps or hurts as in the paper: which parts matter depends on the task (section 6)",
}
ONLY_SOME = ("attention, learned",)  # claims that not every study has
THEOREMS = (
    "**theorems**: NoPE's first layer can write absolute positions, and later layers can attend by distance (theorems 1, 2). "
    "Both constructions hold to 1e-9: `python -m vine_mini lengthgen theory`, tests/lengthgen/test_lengthgen_theory.py\n"
)
SUFFIX = {"more-updates": ", more updates"}  # part -> the end of its claims' names
VERDICTS = ("holds", "does not hold", "not shown", "no interval")
NOTE = (
    "*holds*: the whole interval is above 0. *does not hold*: it is below 0. *not shown*: 0 is inside. *no interval*: one seed, "
    "equal values of all seeds, or tasks of fewer than eight families. The paper's figures count as exact."
)
ABOVE = 0.25  # accuracy of the paper's NoPE on the rows of `level`
WITHIN = 0.10


@dataclass(frozen=True)
class Finding:
    """One comparison of a claim, which says that the number is positive.

    Attributes:
        what: what is compared.
        paper: the paper's number, or "".
        ours: mean, and both ends of the 95 % interval.
        unit: such as "points"; scales nothing.
        part: the part or parts of `lengthgen study` whose runs it needs.
    """

    claim: str
    what: str
    paper: str
    ours: tuple[float, float, float]
    unit: str
    part: str

    @property
    def verdict(self) -> str:
        """holds, does not hold, not shown, or no interval."""
        return "no interval" if math.isinf(self.ours[1]) else intervals.verdict(self.ours)


def ranks(rows: list[dict], part: str = "rows") -> list[Finding]:
    """The order of the mean reciprocal ranks, and NoPE's mean accuracy against the others'. rows: results of several tasks.

    Tasks that were not learned rank encodings by chance. Where there are some, the tasks that were learned are judged as well.
    """
    known = [results for results in rows if report.is_learned(results)]
    of_learned = _ranks(known, f"{len(known)} learned tasks", part) if len(known) < len(rows) else []
    return of_learned + _ranks(rows, f"{len(rows)} tasks", part)


def _ranks(rows: list[dict], where: str, part: str) -> list[Finding]:
    if len(rows) < 2:
        return []
    tasks = ranking.queries(rows)
    names = list(tasks[0][0])
    theirs = dict(zip(paper.COLUMNS, paper.MEAN_RECIPROCAL_RANK, strict=True))
    figures = [paper.accuracy(results["task"]) for results in rows]
    mean = {name: fmean(figure[name] for figure in figures) for name in figures[0]} if all(figures) else {}
    families = [ranking.family(results["task"]) for results in rows]
    reciprocal = [[ranking.reciprocal_ranks(query) for query in task] for task in tasks]
    points = [[{name: 100 * share for name, share in query.items()} for query in task] for task in tasks]
    found = []
    for first, second in [*pairwise(names), *((names[0], other) for other in names[2:])]:  # neighbours; the first and each other
        figure = f"{paper.of(first, theirs) - paper.of(second, theirs):+.3f} (17 tasks)"
        what = f"{first} - {second}, {where}"
        found.append(Finding("rank" + SUFFIX.get(part, ""), what, figure, _gap(reciprocal, families, first, second), "", part))
    for other in names[1:] if names[0] == "nope" else []:
        figure = f"{100 * (mean['nope'] - paper.of(other, mean)):+.1f}" if mean else ""
        what = f"nope - {other}, mean of {where}"
        found.append(
            Finding("accuracy" + SUFFIX.get(part, ""), what, figure, _gap(points, families, "nope", other), "points", part)
        )
    return found


def _gap(tasks: list[list[dict[str, float]]], families: list[str], first: str, second: str) -> tuple[float, float, float]:
    """The first encoding's mean - the second's, low, high. tasks: the rows of each task, one for each seed."""
    return ranking.family_interval([fmean(row[first] - row[second] for row in task) for task in tasks], families)


def levels(rows: list[dict], part: str = "rows") -> list[Finding]:
    """Our accuracy - (the paper's - 10 points), for NoPE and T5 on the rows where the paper's NoPE is above 25 % over lengths."""
    found = []
    for results in rows:
        figures = paper.accuracy(results["task"])
        for name in ("nope", "t5"):
            if figures.get("nope", 0) > ABOVE and name in results["settings"]["encodings"]:
                shares = report.extrapolation(results)[name].values()
                gaps = [100 * (share - figures[name] + WITHIN) for share in shares]
                lengths = "{}-{}".format(*results["settings"]["test_lengths"])
                ours = f"ours, {100 * fmean(shares):.1f} %,"
                what = f"{report.name_of(results)} ({lengths}): {ours} - paper + {100 * WITHIN:.0f}"
                claim = f"level: {name}" + SUFFIX.get(part, "")
                found.append(Finding(claim, what, f"{100 * figures[name]:.1f} %", report.interval(gaps), "points", part))
    return found


def attention(results: dict, measured: dict) -> list[Finding]:
    """Distance of each encoding from NoPE - distance of T5 from NoPE, over seeds, by each measure.

    measured: attention.json of the folder of `results`. Where only some of its models have learned, these are judged as well.
    """
    right, theirs, found = report.seen(results), paper.ATTENTION_DISTANCE, []
    for measure, distances in measured["of each seed"].items():
        for name in [name for name in ("nope", "alibi", "rope25", "sinusoidal") if name in distances]:
            seeds = measured["seeds"]
            pairs = zip(seeds, [*seeds[1:], seeds[0]], strict=True)  # as in `attention.distances_to_nope`
            known = [  # NoPE of the first seed, the others of the second, or of the same one; another NoPE has another seed
                min(right["nope"][a], *(right[of][a if measure == SAME_SEED and of != "nope" else b] for of in ("t5", name)))
                >= report.LEARNED
                for a, b in pairs
            ]
            gaps = [other - t5 for other, t5 in zip(distances[name], distances["t5"], strict=True)]
            if name == "nope":  # the pairs share models: only every other pair is independent of those before
                gaps, known = gaps[: len(seeds) - 1 : 2], known[: len(seeds) - 1 : 2]
            figure = paper.of(name, theirs)
            label = "another seed of nope" if name == "nope" else short(name)
            says = f"{figure - theirs['t5']:+.3f} (official code, SCAN)"
            learned = [gap for gap, k in zip(gaps, known, strict=True) if k]
            for claim, kept in {"attention": gaps, "attention, learned": learned if learned != gaps else []}.items():
                if kept:
                    what = f"{label} - t5, {measure}, {report.name_of(results)}, {len(kept)} seed{'s' * (len(kept) > 1)}"
                    found.append(Finding(claim, what, says, report.interval(kept), "nats", "rows"))
    return found


def positions(results: dict, probed: dict) -> list[Finding]:
    """R² of a linear probe of the position: trained - untrained NoPE, after the first layer. probed: probe.json of the folder."""
    pairs = [*zip(probed["networks"]["trained"], probed["networks"]["untrained"], strict=True)]
    found = []
    for lengths in ("seen", "longer"):
        gaps = [one["after layer 1"]["t"][lengths] - other["after layer 1"]["t"][lengths] for one, other in pairs]
        level = fmean(one["after layer 1"]["t"][lengths] for one, _ in pairs)
        what = f"trained - untrained, {report.name_of(results)}, {lengths} lengths (R² of trained: {level:.2f})"
        found.append(Finding("positions", what, "", report.interval(gaps), "R²", "rows"))
    return found


def frequencies(narrow: list[dict]) -> list[Finding]:
    """Accuracy on longer inputs: RoPE on a quarter of each head - on the whole head, the mean of the tasks, then each task.

    The eight pairs of a whole head of 16 dimensions turn at the frequencies of a quarter of a head of 64, the paper's size. But a
    whole head has no dimension that does not turn. narrow: the results of tasks with heads of 16 dimensions.
    """
    found, every = [], []
    for results in narrow:
        shares = report.extrapolation(results)
        every.append([{name: 100 * shares[name][seed] for name in ("rope25", "rope")} for seed in shares["rope"]])
        lengths = "{}-{}".format(*results["settings"]["test_lengths"])
        ours = report.interval([points["rope25"] - points["rope"] for points in every[-1]])
        what = f"{report.name_of(results)} ({lengths}): rope25 - rope"
        found.append(Finding("frequencies", what, "", ours, "points", "narrow"))
    if len(every) > 1:
        gap = _gap(every, [ranking.family(results["task"]) for results in narrow], "rope25", "rope")
        found.insert(0, Finding("frequencies", f"mean of {len(every)} tasks: rope25 - rope", "", gap, "points", "narrow"))
    return found


def scratchpad(formats: dict[str, dict[str, dict]]) -> list[Finding]:
    """What the full scratchpad adds to accuracy on longer inputs, and each part of it. formats: task -> format -> results

    The values of an interval are seeds; each is the mean over the paper's encodings that both formats have. The difference of the
    paper has a sign in each task. The claim says that ours has the same.
    """
    found = []
    for task, by_format in formats.items():
        if "full" not in by_format:
            continue
        if "none" in by_format:
            gaps = _gaps_of_seeds(by_format["full"], by_format["none"])
            theirs = fmean(a - b for a, b in zip(paper.FULL_SCRATCHPAD[task], paper.ACCURACY[task], strict=True))
            sign = 1 if theirs > 0 else -1
            what = f"{task}: {'full - none' if sign > 0 else 'none - full'}, mean of encodings"
            ours = report.interval([100 * sign * gap for gap in gaps])
            found.append(Finding("scratchpad", what, f"{100 * sign * theirs:+.1f}", ours, "points", "scratchpad"))
        ranks_of = dict(zip(paper.FORMATS, paper.FORMAT_RANKS[task], strict=True))
        for without in [name for name in by_format if name in paper.WITHOUT_ONE]:
            [missing] = set("icovr") - set(without)
            sign = 1 if ranks_of["full"] > ranks_of[without] else -1
            gaps = [100 * sign * gap for gap in _gaps_of_seeds(by_format["full"], by_format[without])]
            figure = f"rank {ranks_of['full']:.2f} full, {ranks_of[without]:.2f} without"
            what = f"{task}: {f'full - without {missing}' if sign > 0 else f'without {missing} - full'}, mean of encodings"
            found.append(Finding("scratchpad parts", what, figure, report.interval(gaps), "points", "scratchpad"))
    return found


def _gaps_of_seeds(one: dict, other: dict) -> list[float]:
    """Accuracy on longer inputs, the first minus the second: the mean over the paper's encodings, for each seed of both."""
    a, b = report.extrapolation(one), report.extrapolation(other)
    seeds = [seed for seed in one["settings"]["seeds"] if seed in other["settings"]["seeds"]]
    return [fmean(a[name][seed] - b[name][seed] for name in paper.COLUMNS if name in a and name in b) for seed in seeds]


def claims_table(findings: list[Finding]) -> str:
    """A section for each claim: how many comparisons hold, the command, and the comparisons with the paper's figure and ours."""
    sections = []
    for name in CLAIMS:
        if of := [f for f in findings if f.claim == name]:
            says = [f.verdict for f in of]
            counts = ", ".join(f"{what} {n}" for what in VERDICTS if (n := says.count(what)))
            rows = [["difference, positive where the claim holds", "paper", "ours", "95 % interval", "verdict"]]
            for f in of:
                mean, low, high = f.ours
                between = "" if math.isinf(low) else f"{low:+.3g} to {high:+.3g}"
                rows.append([f.what, f.paper, f"{mean:+.3g} {f.unit}".strip(), between, f.verdict])
            command = f"`python -m vine_mini lengthgen study --parts {of[0].part} --out results/lengthgen/study`"
            sections.append(f"**{name}**: {CLAIMS[name]}. {len(of)} comparisons: {counts}. {command}\n\n{columns(rows)}\n")
        elif name not in ONLY_SOME:
            sections.append(f"**{name}**: {CLAIMS[name]}. Its runs have not been made yet.\n")
    return "\n".join([f"{NOTE}\n", *sections, THEOREMS])


def measured(folder: Path, name: str) -> dict | None:
    """The numbers that `attention` or `probe` has left in a folder, or None. Raises UserError for something else."""
    path = folder / f"{name}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found is not None and not all(type(x) in (int, float) for x in _numbers(found)):
            raise ValueError("it holds something else than numbers")
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not what `lengthgen {name}` wrote: delete it, and it is measured again") from error


def _numbers(measured: dict) -> list:
    """What `attention` or `positions` takes from a measurement."""
    seeds = [None for _ in measured["seeds"]]
    if "networks" in measured:
        pairs = zip(measured["networks"]["trained"], measured["networks"]["untrained"], seeds, strict=True)
        networks = [network for *both, _ in pairs for network in both]
        return [of["after layer 1"]["t"][lengths] for of in networks for lengths in ("seen", "longer")] + measured["seeds"]
    every = [distances[name] for distances in measured["of each seed"].values() for name in {"t5", *distances}]
    return [x for row in every for x, _ in zip(row, seeds, strict=True)] + measured["seeds"]
