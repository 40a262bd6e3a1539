"""The paper's claims, judged by the results of `lengthgen study`: differences with intervals, and verdicts.

Each finding is a number that the claim says is positive. Its interval has a level of 95 %. It is Student's t over the seeds, or a
bootstrap over families of tasks (copy with its variants is one) and their seeds. A bootstrap of few families is too narrow: below
eight the interval is infinite and the verdict "not shown". No finding is corrected for the number of the others.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from vine_mini.app.tables import columns
from vine_mini.lengthgen import paper, ranking, report
from vine_mini.lengthgen.attention import SAME_SEED
from vine_mini.lengthgen.own import short
from vine_mini.study.statistics import interval, verdict
from vine_mini.types import UserError

CLAIMS = {
    "rank": "mean reciprocal rank over tasks and seeds: NoPE, T5, ALiBi, RoPE, sinusoids, in this order (figure 1)",
    "accuracy": "NoPE's mean accuracy on longer inputs is above that of each explicit encoding (section 4)",
    "level: nope": "NoPE is at most 10 points below the paper, on the rows where the paper's NoPE is above 25 %",
    "level: t5": "T5 is at most 10 points below the paper, on the same rows",
    "attention": "NoPE's attention is nearer to T5's than to that of the others (section 5.2)",
    "attention, learned": "the same, only with models that have learned the seen lengths",
    "positions": "a trained NoPE writes positions in its first layer (Theorem 1); what training adds to random weights",
    "frequencies": "RoPE's quarter is worse in heads of 64 dimensions, the paper's size, where it turns eight pairs and not two",
    "scratchpad": "the full scratchpad helps or hurts as in the paper: it helps on addition, and not in general (section 6)",
    "scratchpad parts": "a part helps or hurts as in the paper: which parts matter depends on the task (section 6)",
}
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
        """holds, does not hold or not shown."""
        return verdict(self.ours)


def ranks(rows: list[dict]) -> list[Finding]:
    """The order of the mean reciprocal ranks, and NoPE's mean accuracy against the others'. rows: results of several tasks.

    Tasks that were not learned rank encodings by chance. Where there are some, the tasks that were learned are judged as well.
    """
    known = [results for results in rows if report.learned(results)]
    of_learned = _ranks(known, f"{len(known)} learned tasks") if len(known) < len(rows) else []
    return _ranks(rows, f"{len(rows)} tasks") + of_learned


def _ranks(rows: list[dict], where: str) -> list[Finding]:
    if len(rows) < 2:
        return []
    tasks = ranking.queries(rows)
    names = list(tasks[0][0])
    theirs = dict(zip(paper.COLUMNS, paper.MEAN_RECIPROCAL_RANK, strict=True))
    figures = [paper.accuracy(results["task"]) for results in rows]
    mean = {name: fmean(figure[name] for figure in figures) for name in figures[0]} if all(figures) else {}
    families = [ranking.family(results["task"]) for results in rows]
    reciprocal = _Gaps([[ranking.reciprocal_ranks(query) for query in task] for task in tasks], families)
    points = _Gaps([[{name: 100 * share for name, share in query.items()} for query in task] for task in tasks], families)
    found = []
    for first, second in [*pairwise(names), *((names[0], other) for other in names[2:])]:  # neighbours; the first and each other
        figure = f"{paper.of(first, theirs) - paper.of(second, theirs):+.3f} (17 tasks)"
        found.append(Finding("rank", f"{first} - {second}, {where}", figure, reciprocal.of(first, second), "", "rows"))
    for other in names[1:] if names[0] == "nope" else []:
        figure = f"{100 * (mean['nope'] - paper.of(other, mean)):+.1f}" if mean else ""
        what = f"nope - {other}, mean of {where}"
        found.append(Finding("accuracy", what, figure, points.of("nope", other), "points", "rows"))
    return found


class _Gaps:
    """Differences of two encodings' means over tasks and seeds, with bootstrap intervals. Arguments as for `bootstrap_means`."""

    def __init__(self, tasks: list[list[dict[str, float]]], families: list[str]):
        self.means, self.draws = ranking.task_means(tasks), ranking.bootstrap_means(tasks, families)
        self.enough = ranking.enough(families)

    def of(self, first: str, second: str) -> tuple[float, float, float]:
        """Mean, low, high of the first - the second."""
        ends = ranking.middle([draw[first] - draw[second] for draw in self.draws]) if self.enough else (-math.inf, math.inf)
        return self.means[first] - self.means[second], *ends


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
                what = f"{report.name_of(results)} ({lengths}): ours - paper + {100 * WITHIN:.0f}"
                what += f", {results['settings']['steps']:,} updates" if part == "longer" else ""
                found.append(Finding(f"level: {name}", what, f"{100 * figures[name]:.1f} %", interval(gaps), "points", part))
    return found


def attention(results: dict, measured: dict) -> list[Finding]:
    """Distance of each encoding from NoPE - distance of T5 from NoPE, over seeds, by each measure.

    measured: attention.json of the folder of `results`. The findings of models that have learned come in addition.
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
            if name == "nope" and len(seeds) == 2:
                gaps, known = gaps[:1], known[:1]  # the two models are one pair
            figure = paper.of(name, theirs)
            label = "another seed of nope" if name == "nope" else short(name)
            says = f"{figure - theirs['t5']:+.3f} (official code, SCAN)"
            for claim, kept in {
                "attention": gaps,
                "attention, learned": [g for g, k in zip(gaps, known, strict=True) if k],
            }.items():
                if kept:
                    what = f"{label} - t5, {measure}, {report.name_of(results)}, {len(kept)} seeds"
                    found.append(Finding(claim, what, says, interval(kept), "nats", "rows"))
    return found


def positions(results: dict, probed: dict) -> list[Finding]:
    """R² of a linear probe of the position: trained - untrained NoPE, after the first layer. probed: probe.json of the folder."""
    pairs = [*zip(probed["networks"]["trained"], probed["networks"]["untrained"], strict=True)]
    found = []
    for lengths in ("seen", "longer"):
        gaps = [one["after layer 1"]["t"][lengths] - other["after layer 1"]["t"][lengths] for one, other in pairs]
        level = fmean(one["after layer 1"]["t"][lengths] for one, _ in pairs)
        what = f"trained - untrained, {report.name_of(results)}, {lengths} lengths (R² of trained: {level:.2f})"
        found.append(Finding("positions", what, "", interval(gaps), "R²", "rows"))
    return found


def frequencies(pairs: list[tuple[dict, dict]]) -> list[Finding]:
    """Accuracy of RoPE's quarter on longer inputs: heads of 16 - heads of 64 dimensions, the mean of the tasks, then each task.

    pairs: the results of a task with narrow and with wide heads.
    """
    found, every, families = [], [], []
    for narrow, wide in pairs:
        a, b = (report.extrapolation(results)["rope25"] for results in (narrow, wide))
        points = [{"narrow": 100 * a[seed], "wide": 100 * b[seed]} for seed in a if seed in b]
        if points:
            lengths = "{}-{}".format(*wide["settings"]["test_lengths"])
            what = f"{report.name_of(wide)} ({lengths}): rope25 in heads of 16 - in heads of 64"
            gaps = [each["narrow"] - each["wide"] for each in points]
            found.append(Finding("frequencies", what, "", interval(gaps), "points", "rows short narrow"))
            every.append(points)
            families.append(ranking.family(wide["task"]))
    if len(every) > 1:
        what = f"mean of {len(every)} tasks: rope25 in heads of 16 - in heads of 64"
        gap = _Gaps(every, families).of("narrow", "wide")
        found.insert(0, Finding("frequencies", what, "", gap, "points", "rows short narrow"))
    return found


def scratchpad(formats: dict[str, dict[str, dict]]) -> list[Finding]:
    """What the full scratchpad adds to accuracy on longer inputs, and each part of it. formats: task -> format -> results

    The values of an interval are seeds; each is the mean over the encodings that both formats have. The paper's difference has a
    sign in each task. The claim says that ours has the same.
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
            ours = interval([100 * sign * gap for gap in gaps])
            found.append(Finding("scratchpad", what, f"{100 * sign * theirs:+.1f}", ours, "points", "scratchpad"))
        ranks_of = dict(zip(paper.FORMATS, paper.FORMAT_RANKS[task], strict=True))
        for without in [name for name in by_format if name in paper.WITHOUT_ONE]:
            [missing] = set("icovr") - set(without)
            sign = 1 if ranks_of["full"] > ranks_of[without] else -1
            gaps = [100 * sign * gap for gap in _gaps_of_seeds(by_format["full"], by_format[without])]
            figure = f"rank {ranks_of['full']:.2f} full, {ranks_of[without]:.2f} without"
            what = f"{task}: {f'full - without {missing}' if sign > 0 else f'without {missing} - full'}, mean of encodings"
            found.append(Finding("scratchpad parts", what, figure, interval(gaps), "points", "scratchpad"))
    return found


def _gaps_of_seeds(one: dict, other: dict) -> list[float]:
    """Accuracy on longer inputs, the first minus the second: the mean over the encodings, for each seed that both have."""
    a, b = report.extrapolation(one), report.extrapolation(other)
    seeds = [seed for seed in one["settings"]["seeds"] if seed in other["settings"]["seeds"]]
    return [fmean(a[name][seed] - b[name][seed] for name in a if name in b) for seed in seeds]


def claims_table(findings: list[Finding]) -> str:
    """All findings as a Markdown table: claim, comparison, the paper's figure, ours with its interval, verdict, command.

    A list of the claims comes first, with how many of their comparisons hold.
    """
    names = [name for name in CLAIMS if any(f.claim == name for f in findings)]
    lines = []
    for name in names:
        of = [f.verdict for f in findings if f.claim == name]
        counts = ", ".join(f"{what} {of.count(what)}" for what in ("holds", "does not hold", "not shown") if what in of)
        lines.append(f"- **{name}**: {CLAIMS[name]}. {len(of)} comparisons: {counts}.")
    rows = [["claim", "difference, positive where the claim holds", "paper", "ours", "95 % interval", "verdict", "command"]]
    for f in sorted(findings, key=lambda f: names.index(f.claim)):
        mean, low, high = f.ours
        command = f"`python -m vine_mini lengthgen study --parts {f.part}`"
        rows.append([f.claim, f.what, f.paper, f"{mean:+.3g} {f.unit}".strip(), f"{low:+.3g} to {high:+.3g}", f.verdict, command])
    return "\n".join([*lines, "", columns(rows)])


def measured(folder: Path, name: str) -> dict | None:
    """The numbers that `attention` or `probe` has left in a folder, or None."""
    path = folder / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is not what `lengthgen {name}` wrote: delete it, and it is measured again") from error
