"""Reference architectures by name, how to export each, and their true count of attention sites."""
