"""`romancy check`: finds in workflow code what replay can't bear, before it runs. Reads the source; imports nothing of it.

Written on Python's own `ast`: linters know the names, but none follows a workflow into the functions that it calls, and none
stops at an activity, where all of this is allowed.
"""

from romancy.check.finding import Finding
from romancy.check.rules import RULES, Rule
from romancy.check.walk import check

__all__ = ["RULES", "Finding", "Rule", "check"]
