"""``vocseg sweep``: many runs with one command, their tables, and a check of a record."""
