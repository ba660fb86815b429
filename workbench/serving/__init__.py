"""A variant as a service, on engines that already exist, and how it holds under load."""
