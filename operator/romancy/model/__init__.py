"""The nouns: frozen data and total functions, nothing that waits. What does I/O does not belong here."""
