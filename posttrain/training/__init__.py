"""A TRL trainer with its callbacks: progress, tracking, alarms, interrupts."""
