"""What papers claim, and what the rows of a study say of it."""
