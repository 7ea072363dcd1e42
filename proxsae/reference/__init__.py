"""The oracle: the iteration and the searches in NumPy, written as the docs write them.  It never imports torch."""
