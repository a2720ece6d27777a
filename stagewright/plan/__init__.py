"""What will happen: stages in steps, schedules, costs. Pure functions."""
