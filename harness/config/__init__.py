"""The configuration: its schema, and how conf/ and the command line become cells."""
