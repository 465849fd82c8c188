"""The digit classifier, and its accuracy as stated; tests/book has the test of its command."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from course_lib.metrics import classifier
from course_lib.metrics.samples import extract, frechet, kid
from course_lib.training import TrainConfig, load_dataset

DIGITS = load_dataset("digits")


def test_it_knows_as_many_test_digits_as_stated():
    model = classifier.digit_classifier()
    with torch.no_grad():
        answers = model(DIGITS.test).numpy().argmax(1)
    right = (answers == DIGITS.test_labels.numpy()).sum()
    assert f"knows {right} of the {len(answers)} test digits" in " ".join(classifier.__doc__.split())
    assert classifier.accuracy(model, DIGITS.test, DIGITS.test_labels) == right / len(answers)


def test_its_features_tell_digits_apart():
    """A linear classifier by another library, fitted to the features alone, is as good."""
    model = classifier.digit_classifier()
    train, test = (extract(model.features, x).numpy() for x in (DIGITS.train, DIGITS.test))
    fitted = LogisticRegression(max_iter=2000).fit(train, DIGITS.train_labels)
    assert fitted.score(test, DIGITS.test_labels) > 0.98


def test_its_weights_are_small_and_as_many_as_stated():
    model = classifier.digit_classifier()
    assert classifier.WEIGHTS.stat().st_size < 300_000
    assert f"{sum(p.numel() for p in model.parameters()):,} weights" in classifier.DigitClassifier.__doc__
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_seed_makes_the_same_bits_twice_and_another_does_not():
    brief = TrainConfig(steps=5, batch_size=128, lr=2e-3, seed=1)
    states = [torch.cat([p.flatten() for p in classifier.fit(brief).parameters()]) for _ in range(2)]
    assert torch.equal(*states)
    other = classifier.fit(TrainConfig(steps=5, batch_size=128, lr=2e-3, seed=2))
    assert not torch.equal(states[0], torch.cat([p.flatten() for p in other.parameters()]))


def test_loading_and_fitting_leave_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    classifier.digit_classifier()
    classifier.fit(TrainConfig(steps=1, batch_size=8))
    assert torch.equal(torch.rand(3), want)


def test_features_are_normalized_and_lead_to_the_logits():
    model, x = classifier.digit_classifier(), DIGITS.test[:20]
    features = model.features(x)
    assert features.shape == (20, 64) and torch.equal(model.head(features), model(x))
    assert torch.allclose(features.mean(1), torch.zeros(20), atol=1e-5)
    assert torch.allclose(features.var(1, correction=0), torch.ones(20), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_distances_see_what_is_wrong_with_images(seed):
    """Noise moves digits away from digits, more noise farther; mirrored digits are far."""
    k = torch.Generator().manual_seed(seed)
    features, order = classifier.digit_classifier().features, torch.randperm(len(DIGITS.train), generator=k)
    one, two = DIGITS.train[order].chunk(2)
    noisy = lambda size: (one + size * torch.randn(one.shape, generator=k)).clamp(-1, 1)
    sets = [extract(features, x) for x in (one, noisy(0.2), noisy(0.5), one.flip(3))]
    for metric in (frechet, kid):
        near, some, much, mirrored = (metric(x, extract(features, two)) for x in sets)
        assert near < some < much and near < some < mirrored


def test_images_of_another_range_or_size_are_refused():
    for x in (torch.zeros(2, 1, 28, 28), torch.full((2, 1, 8, 8), 16.0)):
        with pytest.raises(ValueError, match="x must"):
            classifier.digit_classifier()(x)


def test_accuracy_does_not_broadcast_labels():
    model, x, labels = classifier.digit_classifier(), DIGITS.test, DIGITS.test_labels
    for bad in (labels[:, None], labels[:1]):
        with pytest.raises(ValueError, match=r"labels must have shape \(360,\)"):
            classifier.accuracy(model, x, bad)
