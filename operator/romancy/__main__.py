"""`python -m romancy`."""

from romancy.cli.main import main

main()
