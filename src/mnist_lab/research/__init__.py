"""Experiments around the core: calibration, distillation, tuning, ablation, robustness, sweeps."""
