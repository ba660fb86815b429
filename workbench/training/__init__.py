"""Steps that learn: their loop, loss, samples, teachers and curves."""
