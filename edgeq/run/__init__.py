"""Artefacts on a device: verify and profile."""
