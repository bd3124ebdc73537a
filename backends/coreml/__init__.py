"""Core ML packages, and an interpreter that reads them back where Core ML does not run."""
