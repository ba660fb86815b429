"""Documents looked up."""
