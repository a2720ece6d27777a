"""The plan: all numbers of a run, computed from recipe and data; schedules, costs and budgets."""
