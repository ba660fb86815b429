"""Questions about variants: what changed, what would change, whether others read it."""
