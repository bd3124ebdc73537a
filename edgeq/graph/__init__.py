"""The network as a graph: capture, annotation, QDQ conversion, integer-exact simulation."""
