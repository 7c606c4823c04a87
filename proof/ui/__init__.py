"""The dashboard in a real browser (docs/dashboard.md)."""
