"""One linear layer after another: what it is fed, how it is changed, how much it minds."""
