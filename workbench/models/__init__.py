"""A model on disk and in memory: loaded, shared, packed, adapted, exported; and text as its tokens."""
