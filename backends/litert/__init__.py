"""LiteRT (TFLite): flatbuffers of our own, float islands through litert-torch."""
