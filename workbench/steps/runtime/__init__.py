"""Runtime: the same weights and answers, run in another way."""

__all__: list[str] = []
