"""The published archives: `archives` plans and records, `transfer` fetches, `unpack` unpacks."""
