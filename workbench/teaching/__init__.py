"""For a class: a step or a prediction checked against the workbench's own, its mistakes named, recipes ranked."""
