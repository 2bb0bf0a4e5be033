import pytest
from pydantic import ValidationError

from vecall.evaluation.settings import EvaluationSettings


def test_default_ks():
    assert EvaluationSettings().ks == (10, 50, 100, 200, 500)


@pytest.mark.parametrize("ks", [(), (0, 10), (10, 10), (100, 10)])
def test_empty_unordered_or_non_positive_ks_are_refused(ks):
    with pytest.raises(ValidationError):
        EvaluationSettings(ks=ks)
