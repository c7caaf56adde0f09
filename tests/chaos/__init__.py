"""The whole product with real processes, faults at random moments, and a referee that says what became of each run."""
