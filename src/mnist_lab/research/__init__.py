"""Experiments with the network: calibration, distillation, tuning, robustness, explanations."""
