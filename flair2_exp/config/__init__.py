"""The typed config: one dataclass per group, its rules, its composition and its identity.

The dataclasses are the only declaration of an option. Each part of the package receives those of
the groups that it works by; the whole `Config` stays in `run` and above.
"""
