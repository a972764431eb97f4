"""``vocseg export``: a network as a file, and what runs it. Imports nothing: the running side does without torch."""
