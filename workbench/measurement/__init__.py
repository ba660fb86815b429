"""Numbers with their uncertainty: latency, memory, likelihood and scores; timing never happens while scoring."""
