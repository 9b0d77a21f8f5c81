"""Claims runs, carries out what their code asks for, and appends what happened. It talks to the store, never to Kubernetes."""
