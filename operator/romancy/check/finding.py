"""What was found, and where."""

from dataclasses import dataclass
from pathlib import Path

from romancy.check.rules import Rule


@dataclass(frozen=True, slots=True)
class Finding:
    """One place. `within` is the function that holds it, `workflow` the one that calls it, directly or through others."""

    path: Path
    line: int
    column: int  # from 1
    rule: Rule
    what: str
    within: str
    workflow: str

    def __str__(self) -> str:
        through = "" if self.within == self.workflow else f" through {self.within}"
        return (
            f"{self.path}:{self.line}:{self.column}: {self.rule.name}: {self.what}: {self.rule.why}; {self.rule.cure} "
            f"(workflow {self.workflow}{through})"
        )
