"""`pytest tutorials/exercises -k ex06` grades exercise 06. Without -k it grades all exercises."""

import pytest
from grading import EXERCISES, grade_file


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.file)
def test_exercise(exercise):
    failure = None
    try:
        grade_file(exercise)
    except NotImplementedError as error:
        failure = f"not implemented yet: {error}"
    except AssertionError as error:
        failure = str(error)
    if failure:
        pytest.fail(failure, pytrace=False)  # the message without a traceback
