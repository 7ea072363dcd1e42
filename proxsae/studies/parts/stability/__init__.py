"""Whether two trainings find the same atoms."""
