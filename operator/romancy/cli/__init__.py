"""The command line: puts the parts together. A command imports what it needs when it runs, so that help is fast."""
