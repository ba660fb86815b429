"""How a model runs: nobody else takes its lock, builds a cache, pads, or reads a beginning once."""
