"""The tool that puts mistakes into the mathematics: which mistakes it makes, and that it sees whether a test notices them."""

import ast
import importlib

import pytest

from benchmarks import mutants

SOURCE = '''
"""Text of the module."""
@cache(maxsize=7)
def f(a: "int", b=2):
    """Text."""
    if not a < 1 and b in (True, "x"):
        raise ValueError(f"a = {a}: 3 is too much")
    b += -a.min()
    return a[0] @ b[0]
'''


def test_each_mutant_has_one_change():
    made = dict(mutants.mutants(SOURCE))
    assert set(made) == {
        "line 4, f: 2 -> 3",
        "line 4, f: 2 -> 1",
        "line 6, f: not a < 1 and b in (True, 'x') -> not a < 1 or b in (True, 'x')",
        "line 6, f: not a < 1 -> not not a < 1",
        "line 6, f: a < 1 -> a <= 1",
        "line 6, f: 1 -> 2",
        "line 6, f: 1 -> 0",
        "line 6, f: b in (True, 'x') -> b not in (True, 'x')",
        "line 6, f: True -> False",
        "line 6, f: 'x' -> 'xXX'",
        "line 8, f: b += -a.min() -> b -= -a.min()",
        "line 8, f: -a.min() -> +a.min()",
        "line 8, f: a.min -> a.max",
        "line 9, f: return a[0] @ b[0] -> return None",
        "line 9, f: 0 -> 1",
        "line 9, f: 0 -> -1",
        "line 9, f: 0 -> 1 (2)",
        "line 9, f: 0 -> -1 (2)",
    }
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for source in made.values():
        assert sum(a != b for a, b in zip(plain, source.splitlines(), strict=True)) == 1


def test_mutants_are_counted_and_the_equivalent_ones_apart(monkeypatch):
    sources = dict(mutants.mutants((mutants.ROOT / "vine_mini" / "values.py").read_text()))
    first, second = sorted(sources)[:2]

    def noticed(module, source, tests):
        return source in sources.values() and source not in (sources[first], sources[second])

    found = mutants.measure("values", "test_values.py", 1, noticed)
    assert found == {"mutants": len(sources), "survived": [what for what in sources if what in (first, second)]}
    monkeypatch.setitem(mutants.EQUIVALENT, ("values", first.split(", ", 1)[1]), "a reason")
    text = mutants.table({"values": found})
    assert f"- values, {second}" in text and first not in text
    n = len(sources)
    assert f"| {n}       | {n - 2}       | 1          | 1       | {100 * (n - 2) / (n - 1):.1f}" in text
    with pytest.raises(RuntimeError, match="fail without any change"):
        mutants.measure("values", "test_values.py", 1, lambda *_: True)


@pytest.mark.slow
def test_the_tests_notice_a_wrong_mean():
    importlib.import_module("test_values")  # as in a session that has collected it already
    source = (mutants.ROOT / "vine_mini" / "values.py").read_text()
    assert not mutants.noticed("values", source, "test_values.py")
    wrong = [mutant for what, mutant in mutants.mutants(source) if what.endswith("return None")]
    assert wrong and all(mutants.noticed("values", mutant, "test_values.py") for mutant in wrong)
