"""The client: what it refuses before anybody is asked, and what it shows."""
