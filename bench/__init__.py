"""Times beside their targets: `make bench`. They fail nothing: counts are tests, times are shown."""
