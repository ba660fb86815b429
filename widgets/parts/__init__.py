"""What panels and panes are made of: controls, messages, figures, HTML, looks."""
