"""The whole node under deterministic simulation: one seed is one exact run. See docs/proof.md."""
