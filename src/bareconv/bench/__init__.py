"""The instrument: environment, comparison, parity, profiles, gradient checks, and the result file."""
