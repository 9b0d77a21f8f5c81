"""What user code imports: workflows, activities, compensations, the context. What runs them does not belong here."""
