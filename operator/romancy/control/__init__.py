"""Kubernetes, in the pod that holds the Lease: resources to runs, rows to statuses, dead workers. Runs no user code."""
