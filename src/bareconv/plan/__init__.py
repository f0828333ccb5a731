"""Plans: whole training steps laid out in advance, derived from a model and held against it."""
