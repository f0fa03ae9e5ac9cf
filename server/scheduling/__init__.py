"""Who runs next: requests, budgets, preemption; plain data only."""
