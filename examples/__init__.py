"""Task files to copy: each says what to quantize, on what to calibrate, and how good the result is."""
