"""Networks: backbones and heads as linen modules, and their evaluation as pure functions."""
