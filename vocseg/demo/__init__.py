"""``vocseg demo``: a page on which a checkpoint segments photographs."""
