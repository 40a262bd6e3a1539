"""The tasks against the forms in the paper's code, their checkers against wrong answers, scratchpads against worked examples."""

import random
import re
from collections import Counter

import pytest

from vine_mini.decoder.model import word_tokenizer
from vine_mini.lengthgen import languages, paper
from vine_mini.lengthgen.scratchpad import LETTERS, STEPS, expand, final_answer, parts_of
from vine_mini.lengthgen.tasks import COUNTED, ITEMS, SORTABLE, TASKS
from vine_mini.lengthgen.vocabulary import IDS, TOKEN, decode, encode, tokens

# written by the official code (McGill-NLP/length-generalization), but for the last one; prompt -> target
FORMS = {
    "copy": [("Copy: a a a [SEP] ", "a a a")],
    "copy-2x": [("Copy: a a [SEP] ", "a a a a")],
    "copy-v2": [("Replace 6 with > in 6 6 6 [SEP] ", "> > >")],
    "copy-v3": [("Copy: k 7 Q k [SEP] ", "k 7 Q k")],
    "copy-v3-2x": [("Copy: k 7 [SEP] ", "k 7 [NEXT] k 7")],
    "reverse": [("Reverse: a b c [SEP] ", "c b a")],
    "reverse-2x": [("Reverse: a b c [SEP] ", "c b a [NEXT] c b a")],
    "reverse-v2": [("Reverse: a b c [SEP] ", "c b a [NEXT] a b c")],
    "addition": [("Compute 7 2 6 + 5 7 ? ", "The answer is 7 8 3."), ("Compute 9 9 + 1 ? ", "The answer is 1 0 0.")],
    "polynomial": [
        ("Evaluate at x = - 2 in - 2 * x ** 2 + 3 * x ** 1 ? ", "The answer is 6."),  # -8 - 6 = -14
        ("Evaluate at x = 2 in 3 * x ** 3 + - 1 * x ** 0 + 0 * x ** 2 ? ", "The answer is 3."),  # 24 - 1 + 0
    ],
    "sort": [("Sort the following list [ M, E, F ]. ", "The sorted list is [ E, F, M ].")],
    "sort-numbers": [("Sort the following list [ 2 4 6 8, 6 3, 8 8 1 ]. ", "The sorted list is [ 6 3, 8 8 1, 2 4 6 8 ].")],
    "sum": [("Compute: 7 + 5 + 9 .[SEP] ", "The answer is 1 .")],
    "parity": [("Is the number of 1's even in the sequence [ 1, 0, 1, 1 ] ? ", "The answer is No.")],
    "lego": [
        ("If q = +1, t = - q, c = + t, z = - c. Then, what is the value of c? ", "The answer is -1."),
        ("If q = -1, t = - q, c = + t. Then, what is the value of c? ", "The answer is +1."),
    ],
    "scan": [
        ("Solve: walk after turn right[SEP] ", "Right Walk"),
        ("Solve: jump opposite left twice and look around right twice[SEP] ", "Left Left Jump " * 2 + "Right Look " * 8),
    ],
    "pcfg": [
        ("Solve: echo append copy A B C D , shift remove_second E F G H , I J K L M[SEP] ", "A B C D F G H E E"),
        ("Solve: remove_first repeat A , swap_first_last B C D[SEP] ", "D C B"),
    ],
    "addition-reversed": [
        ("Compute 7 2 6 + 0 5 7 ? ", "The answer is 3 8 7 0."),
        ("Compute 9 9 + 0 1 ? ", "The answer is 0 0 1."),
    ],
}


def samples(name, n=40):
    rng = random.Random(0)
    task = TASKS[name]
    lengths = task.lengths(task.train[0], task.test[1])
    return [(length, *task.make(length, rng)) for length in lengths for _ in range(n if len(lengths) < 25 else n // 2)]


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


def test_forms_are_those_of_the_official_code(name):
    def shape(text):  # words that every prompt has stay, what varies becomes a class
        fixed = {w for p, t in FORMS[name] for w in tokens(p + t) if len(w) > 1 or not w.isalnum()}
        return [w if w in fixed else "x" for w in tokens(text)]

    for prompt, target in FORMS[name]:
        assert TASKS[name].check(prompt, target)
        assert encode(prompt + target)
    prompt, target = FORMS[name][0]
    if name not in ("copy-v2", "sort-numbers", "scan", "pcfg"):  # whose words or numbers of digits vary
        made = [(shape(p), shape(t)) for _, p, t in samples(name, 120)]
        assert (shape(prompt), shape(target)) in made
    assert prompt.endswith(" ") and all(p.split()[0] == prompt.split()[0] for _, p, _ in samples(name, 4))


def occurring(name, pattern, part=0):
    """Everything that a pattern finds in many prompts (part 0) or targets (1), with how often."""
    return Counter(found for row in samples(name, 120) for found in re.findall(pattern, row[1 + part]))


def test_generators_draw_from_the_ranges_of_the_paper():
    assert set(occurring("polynomial", r"x = (- \d|\d)")) == {"- 2", "- 1", "0", "1", "2"}
    coefficients = occurring("polynomial", r"(?:in|\+) (- \d|\d) \* x")
    assert set(coefficients) == {"- 3", "- 2", "- 1", "0", "1", "2", "3"}
    assert set(occurring("polynomial", r"\*\* (\d)")) == set("0123")
    assert max(coefficients.values()) < 1.1 * min(coefficients.values())  # about 2300 each, sd 45
    digits = occurring("sum", r"\d")
    assert set(digits) == set("123456789") and max(digits.values()) < 1.2 * min(digits.values())
    rows = [row[1][row[1].index("[") + 1 : -4].split(",") for row in samples("sort-numbers", 200)]
    numbers = Counter(len(n.split()) for row in rows for n in row)
    assert set(numbers) == {2, 3, 4} and 0.89 < numbers[4] / sum(numbers.values()) < 0.91  # uniform in 10..9999; sd 0.002
    assert set(occurring("sort", r"[\[,] (\w)")) == set(SORTABLE)
    assert any(len(set(row[1][:-4].split()[5:])) < row[0] for row in samples("sort"))  # with repeats
    assert len(set(ITEMS)) == 100
    for name in ("copy-v3", "copy-v3-2x", "reverse", "reverse-2x", "reverse-v2"):
        assert set(occurring(name, r"\S+", part=1)) - {"[NEXT]"} == set(ITEMS)
    for name in ("copy", "copy-2x", "copy-v2"):
        assert set(occurring(name, r"\w", part=1)) == set(COUNTED)
    pairs = Counter(tuple(len(n.split()) for n in row[1][8:-2].split("+")) for row in samples("addition", 600) if row[0] == 4)
    assert len(pairs) == 7 and min(pairs.values()) > 50  # (4,1) (4,2) (4,3) (4,4) (1,4) (2,4) (3,4): 86 each, sd 9
    asked = Counter()
    for length, prompt, _ in samples("lego", 400):
        asked[length, re.findall(r"(\w) = ", prompt).index(prompt[-3])] += 1
    second_half = {4: [2, 3], 5: [3, 4], 8: [4, 5, 6, 7], 9: [5, 6, 7, 8]}  # counted from 0; without the middle of an odd chain
    assert {n: sorted(i for m, i in asked if m == n) for n in second_half} == second_half


def test_targets_pass_the_checker_and_changed_ones_do_not(name):
    """Every target, one with a token more, one less, one replaced, and (if that changes it) its tokens shuffled."""
    rng = random.Random(1)
    check = TASKS[name].check
    for _, prompt, target in samples(name):
        words = decode(encode(target)).split()
        assert check(prompt, target) and check(prompt, " ".join(words))
        place = rng.randrange(len(words))
        other = rng.choice([w for w in ("a", "7", "Yes", "No", "+", "-", ".", "[NEXT]", "Walk", "B") if w != words[place]])
        shuffled = rng.sample(words, len(words))
        wrong = [[*words, words[-1]], words[:-1], [*words[:place], other, *words[place + 1 :]], [], [other]]
        wrong += [shuffled] if shuffled != words else []
        for answer in wrong:
            if answer != words:
                assert not check(prompt, " ".join(answer)), (prompt, answer)


def test_checkers_survive_any_text(name):
    rng = random.Random(2)
    _, prompt, _ = samples(name, 2)[-1]
    vocabulary = "The answer is sorted list [ ] , . Yes No + - 1 9 a A [NEXT] Walk Thus : ? > *".split()
    for n in range(200):
        assert TASKS[name].check(prompt, " ".join(rng.choices(vocabulary, k=n % 20))) is False


def test_lengths_are_what_the_task_says(name):
    for length, prompt, target in samples(name, 6):
        words, out = tokens(prompt), target.split()
        counted = {
            "addition": lambda w=words: max(len(part.split()) for part in " ".join(w[1:-1]).split("+")),
            "addition-reversed": lambda w=words: (len(w) - 3) // 2,
            "polynomial": lambda w=words: w.count("x") - 1,
            "sort": lambda w=words: w.count(",") + 1,
            "sort-numbers": lambda w=words: w.count(",") + 1,
            "sum": lambda w=words: w.count("+") + 1,
            "parity": lambda w=words: w.count(",") + 1,
            "lego": lambda w=words: w.count("="),
            "scan": lambda o=out: len(o),
            "pcfg": lambda w=words: sum(x in languages.UNARY or x in languages.BINARY for x in w),
            "copy-v2": lambda w=words: len(w) - 6,
        }
        assert counted.get(name, lambda w=words: len(w) - 3)() == length


def test_same_seed_same_examples_and_most_prompts_differ(name):
    assert samples(name, 4) == samples(name, 4)
    longest = [prompt for length, prompt, _ in samples(name, 30) if length == TASKS[name].test[1]]
    assert len(set(longest)) > (5 if name in ("copy", "copy-2x", "scan") else 25 if name != "copy-v2" else 20) * len(longest) / 40


def test_scan_is_the_whole_language_and_the_paper_s_split():
    by_length = languages.scan_commands()
    assert sum(map(len, by_length.values())) == 20_910
    assert len({prompt for rows in by_length.values() for prompt, _ in rows}) == 20_910
    assert sum(len(rows) for length, rows in by_length.items() if length <= 25) == 15_997 + 1_777
    assert tuple(sorted(by_length)) == languages.SCAN_LENGTHS
    assert [length for length in sorted(by_length) if length > 25] == [26, 27, 28, 30, 32, 33, 36, 40, 48]
    assert all(languages.check_scan(p, t) and len(t.split()) == n for n, rows in by_length.items() for p, t in rows)


def test_weights_are_the_shares_of_the_paper_s_test_set():
    def weights(name):
        return [TASKS[name].weight(length) for length in TASKS[name].lengths(*TASKS[name].test)]

    assert weights("scan") == [512, 448, 448, 576, 448, 256, 64, 256, 128] and sum(weights("scan")) == 3_136
    assert weights("addition") == [17, 19, 21, 23, 25, 27, 29, 31] and sum(weights("addition")) == 192  # pairs of digit counts
    assert set(weights("sum")) == {1}


def test_the_paper_s_17_tasks_have_its_lengths_or_can_have_them():
    assert {*TASKS} == {*paper.ACCURACY, "addition-reversed"} and len(paper.ACCURACY) == 17
    trained = {name: task.train for name, task in TASKS.items()}
    assert trained["parity"] == (4, 8) and trained["sort"] == trained["sum"] == (2, 8)
    assert trained["lego"] == (2, 8)  # the paper's curves start at 4
    assert trained["polynomial"] == trained["addition"] == trained["pcfg"] == (1, 8) and trained["scan"] == (1, 25)
    rng = random.Random(0)
    for name, longest in {"copy": 40, "reverse-v2": 40, "pcfg": 35}.items():
        prompt, target = TASKS[name].make(longest, rng)
        assert longest in TASKS[name].lengths(1, longest) and TASKS[name].check(prompt, target)


def test_pcfg_uses_every_function_and_bounds_its_output():
    rows = [languages.make_pcfg(n % 16 + 1, random.Random(n)) for n in range(2000)]
    used = Counter(word for prompt, _ in rows for word in prompt.split())
    assert all(used[name] > 100 for name in [*languages.UNARY, *languages.BINARY])
    assert max(len(target.split()) for _, target in rows) <= languages.LONGEST
    assert all(re.search(r"[A-Z]\[SEP\] $", prompt) for prompt, _ in rows)  # no space before [SEP], as in the official code


def test_parity_and_lego_answers_are_balanced_and_sorting_has_a_hidden_order():
    for task, one in (("parity", "Yes"), ("lego", "+1")):
        answers = Counter(one in target for _, _, target in samples(task, 200))
        assert abs(answers[True] / sum(answers.values()) - 0.5) < 0.05  # 2600 draws: 5 standard errors
    assert len(SORTABLE) == 50 and SORTABLE.startswith("0123456789abc") and SORTABLE.index("z") < SORTABLE.index("A")


def test_the_tokenizer_cuts_as_the_tasks_do():
    fast = word_tokenizer(IDS, TOKEN)
    for name in TASKS:
        for _, prompt, target in samples(name, 2):
            assert fast(prompt + target, add_special_tokens=False)["input_ids"] == encode(prompt + target)
            assert fast.decode(encode(target)) == decode(encode(target))


# --- scratchpad ------------------------------------------------------------------------------------------------------------

# of the first prompt of each task, written by the official code with the markers of its final runs
FULL = {
    "addition": "in 6, 7 comp 6 + 7 + carry = 13 + 0 = 13 out 3 [ carry: 1 ] re 7 2 + 5 # in 2, 5 comp 2 + 5 + carry = 7 + 1 = 8 out 8 [ carry: 0 ] re 7 + 0 # in 7, 0 comp 7 + 0 + carry = 7 + 0 = 7 out 7 [ carry: 0 ] re + . Thus, The answer is 7 8 3.",
    "polynomial": "in - 2 * x ** 2 comp - 2 * - 2 ** 2 = - 2 * 4 out - 8 [ sum: 0 + - 8 = 2 ] re 3 * x ** 1 # in 3 * x ** 1 comp 3 * - 2 ** 1 = 3 * - 2 out - 6 [ sum: 2 + - 6 = 6 ] re . Thus, The answer is 6.",
    "sort": "in M comp The minimum of the unsorted portion out E re [ M, F ] # in M comp The minimum of the unsorted portion out F re [ M ] # in M comp The minimum of the unsorted portion out M re [ ] . Thus, The sorted list is [ E, F, M ].",
    "sort-numbers": "in 2 4 6 8 comp The minimum of the unsorted portion out 6 3 re [ 2 4 6 8, 8 8 1 ] # in 2 4 6 8 comp The minimum of the unsorted portion out 8 8 1 re [ 2 4 6 8 ] # in 2 4 6 8 comp The minimum of the unsorted portion out 2 4 6 8 re [ ] . Thus, The sorted list is [ 6 3, 8 8 1, 2 4 6 8 ].",
    "sum": "in 7 comp 7 + sum = 7 + 0 = out 7 [ sum: 7 = 7 ] re 5 + 9 # in 5 comp 5 + sum = 5 + 7 = out 1 2 [ sum: 1 2 = 2 ] re 9 # in 9 comp 9 + sum = 9 + 2 = out 1 1 [ sum: 1 1 = 1 ] re . Thus, The answer is 1 .",
    "parity": "in 1 comp 1 ** par = 1 ** 0 out 1 [ par: 1 ] re [ 0, 1, 1 ] # in 0 comp 0 ** par = 0 ** 1 out 1 [ par: 1 ] re [ 1, 1 ] # in 1 comp 1 ** par = 1 ** 1 out 0 [ par: 0 ] re [ 1 ] # in 1 comp 1 ** par = 1 ** 0 out 1 [ par: 1 ] re [ ] . Thus, The answer is No.",
    "lego": "in q comp out +1 re t = - q, c = + t, z = - c # in t comp - q = - +1 out -1 re c = + t, z = - c # in c comp + t = + -1 out -1 re z = - c . Thus, The answer is -1.",
}


@pytest.mark.parametrize("name", STEPS)
def test_full_scratchpads_are_those_of_the_official_code(name):
    """But for repeated spaces, which the tokens do not show."""
    assert expand(name, *FORMS[name][0], LETTERS) == f"Thinking step by step: {FULL[name]}"


def test_a_carry_that_is_left_takes_one_more_step():
    carried = expand("addition", "Compute 9 + 1 ? ", "The answer is 1 0.", LETTERS)
    assert carried.count("#") == 1 and "in 0, 0 comp 0 + 0 + carry = 0 + 1 = 1 out 1" in carried


@pytest.mark.parametrize("name", STEPS)
def test_every_part_has_its_switch(name):
    _, prompt, target = samples(name, 1)[3]
    marks = {"i": "in ", "c": "comp ", "o": "out ", "v": ": ", "r": "re "}
    steps = {part: expand(name, prompt, target, part)[len("Thinking step by step: ") :].split(" . Thus, ")[0] for part in LETTERS}
    full = expand(name, prompt, target, LETTERS)
    keeps = name not in ("sort", "sort-numbers", "lego")
    for part, text in steps.items():
        pieces = text.split(" # ")
        if part == "v" and not keeps:
            assert not text.replace("#", "").strip()
            continue
        assert all(marks[part] in piece + " " for piece in pieces)
        assert all(piece in full for piece in pieces)
    assert expand(name, prompt, target, "") == target


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("parts", ["icovr", "co", "iovr"])
def test_the_last_step_and_the_answer_agree(name, parts):
    """What a scratchpad computes is what the task's own checker says."""
    for _, prompt, target in samples(name, 4):
        text = expand(name, prompt, target, parts)
        assert TASKS[name].check(prompt, final_answer(decode(encode(text)), parts))
        outputs = [step.split(" out ")[1] for step in expand(name, prompt, "", "co").split(" . Thus")[0].split(" # ")]
        if name == "addition":
            assert target == f"The answer is {' '.join(reversed(outputs))}."
        if name in ("sort", "sort-numbers"):
            assert target == f"The sorted list is [ {', '.join(outputs)} ]."
        if name == "lego":
            assert target == f"The answer is {outputs[-1]}."
        if name == "sum":
            assert target == f"The answer is {outputs[-1][-1]} ."


def test_a_switch_takes_out_its_part_and_no_other():
    prompt_and_target = FORMS["addition"][0]
    full = f"Thinking step by step: {FULL['addition']}"
    taken = {"icor": r" \[ carry: \d \]", "icov": r" re [\d +]*(?= [#.])", "iovr": r" comp [^#]*?(?= out)", "icvr": r" out \d"}
    for parts, gone in taken.items():
        assert expand("addition", *prompt_and_target, parts) == re.sub(gone, "", full)
    assert expand("addition", *prompt_and_target, "covr") == re.sub(r"in \d, \d ", "", full)


def test_an_answer_counts_only_after_exactly_one_end_of_steps():
    good = "Thinking step by step: out 3 . Thus , The answer is 3 ."
    assert final_answer(good, "o") == "The answer is 3 ."
    assert final_answer("The answer is 3 .", "o") == ""
    assert final_answer(good + " Thus , The answer is 4 .", "o") == ""
    assert final_answer("The answer is 3 .", "") == "The answer is 3 ."


def test_formats():
    assert [parts_of(name) for name in ("none", "full", "minimal", "icor")] == ["", "icovr", "co", "icor"]
    for bad in ("", "x", "oc", "cco", "Full"):
        with pytest.raises(ValueError, match="choose from none, full, minimal"):
            parts_of(bad)
