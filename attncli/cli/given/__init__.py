"""From files and options to a problem."""
