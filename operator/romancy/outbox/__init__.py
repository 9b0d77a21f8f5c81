"""Events that runs emit go out from here: what is due, and one HTTP request each. What runs send each other is the worker's."""
