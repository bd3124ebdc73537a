"""One module for each kernel set: how it rounds."""
