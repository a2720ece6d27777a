"""Those who look on while a run goes: they read events after the fact and change nothing."""
