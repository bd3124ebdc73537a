"""TVM: integer kernels of our own in TIR, float islands through its importer."""
