"""The typed config: one dataclass per group, its rules, its composition and its identity."""
