"""The parts of the bench that belong to no family: the list of variants, chat, comparison."""
