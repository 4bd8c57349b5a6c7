"""Experiments around the core: comparison, calibration, tuning, ablation, robustness, sweeps."""
