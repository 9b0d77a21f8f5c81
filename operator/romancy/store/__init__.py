"""All SQL, and nothing else knows any: rows of runs, histories, inboxes, workers. What a workflow is, it does not know."""
