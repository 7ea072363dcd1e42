"""What SAEs, and more steps of them, do to the language model that the rows come from."""
