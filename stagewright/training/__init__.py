"""A run under way: loop, session, guard, records."""
