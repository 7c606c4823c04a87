"""The sharded cluster under simulation: catalog, several groups, routers; on the same stage as the single group."""
