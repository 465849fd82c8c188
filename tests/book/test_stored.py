"""What is computed once and stored: the command that makes it makes it again."""

import pytest
import torch

from course_lib.metrics import classifier
from course_lib.training import load_dataset

DIGITS = load_dataset("digits")


def test_the_classifier_s_command_makes_its_weights():
    """Up to rounding, which differs by processor and version: the answers are the same, or nearly."""
    kept, again = classifier.digit_classifier(), classifier.fit()
    if not torch.cuda.is_available():  # where training is in bfloat16
        for name, weights in again.state_dict().items():
            assert torch.allclose(weights, kept.state_dict()[name], rtol=0, atol=1e-3), name
    with torch.no_grad():
        same = kept(DIGITS.test).argmax(1) == again(DIGITS.test).argmax(1)
    assert same.double().mean() >= 0.98
    assert classifier.accuracy(again, DIGITS.test, DIGITS.test_labels) == pytest.approx(
        classifier.accuracy(kept, DIGITS.test, DIGITS.test_labels), abs=0.015
    )
