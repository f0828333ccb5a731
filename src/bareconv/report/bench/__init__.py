"""The parts of a benchmark's page, each with its charts, tables and sentences, made from a validated result."""
