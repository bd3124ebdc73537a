"""ExecuTorch with the XNNPACK delegate."""
