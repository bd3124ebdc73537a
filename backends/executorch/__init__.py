"""ExecuTorch with XNNPACK: lower to a .pte, inspect it, run it on this host and profile it operator by operator."""
