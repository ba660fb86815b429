"""What everything stands on: values, errors, files, progress, numbers with their interval."""
