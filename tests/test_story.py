"""The whole story in one test: read it first."""

import pytest
import torch

from mnist_mlp import EnhancedNet, Recipe, compare, evaluate, fit, load, load_weights, save_weights


def new_network() -> EnhancedNet:
    torch.manual_seed(0)  # the same initial weights each time
    return EnhancedNet()


def test_story(tmp_path):
    # Load scikit-learn's small digits, which need no download.
    splits = load("digits")

    # Train a network, and evaluate it on images that it has never seen.
    recipe = Recipe(epochs=4, batch_size=64, augment_strength=0.0)
    model = new_network()
    history = fit(model, splits.train, splits.validation, recipe)
    result = evaluate(model, splits.test)
    assert history.validation_accuracy > 0.9
    assert result.accuracy > 0.9

    # Save its weights, and load them into another network.
    save_weights(model, tmp_path / "digits.pth", test_accuracy=result.accuracy)
    loaded = load_weights(EnhancedNet(), tmp_path / "digits.pth")
    assert evaluate(loaded, splits.test).accuracy == result.accuracy

    # Train again, now with a checkpoint. Press Ctrl-C after the first epoch.
    def press_ctrl_c(history):
        raise KeyboardInterrupt

    checkpoint = tmp_path / "training.pt"
    data = splits.train, splits.validation
    interrupted = new_network()
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, *data, recipe, checkpoint=checkpoint, on_epoch=press_ctrl_c)

    # A new process starts with a new network; the same call continues from the checkpoint.
    continued = new_network()
    fit(continued, *data, recipe, checkpoint=checkpoint)
    assert torch.equal(evaluate(continued, splits.test).logits, result.logits)

    # Compare the interrupted network with the trained one, on the same images.
    comparison = compare(evaluate(interrupted, splits.test).correct, result.correct)
    # The 95% interval of the gain, from the first to the second, is above zero.
    assert comparison.low > 0
    assert comparison.verdict == "better"
