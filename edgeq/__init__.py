"""Calibrate a PyTorch model once, run it as the same integers on every edge runtime."""
