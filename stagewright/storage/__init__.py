"""Reading and writing files so that a killed process or a failing disk does not damage them; locks of run directories."""
