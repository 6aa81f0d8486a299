"""Before a run is queued, and what became of it: preflight, planner, ledger's sums."""
