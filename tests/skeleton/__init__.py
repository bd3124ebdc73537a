"""A runtime reduced to what every runtime has, to copy from; tests/test_adding_a_runtime.py puts it beside the others."""
