"""``vocseg report``: one HTML page of what runs left on disk. Nothing is trained."""
