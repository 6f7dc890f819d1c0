"""What runs: programs, schedules, and the reports about them."""
