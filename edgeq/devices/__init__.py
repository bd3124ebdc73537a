"""Where an artefact runs: devices know files and commands, not models."""
