"""HTTP: what comes in, and how the process is. It keeps no state."""
