"""Measurements of a variant: latency, memory, likelihood and answers; timing never happens while scoring."""
