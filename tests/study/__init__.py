"""The study: arms as a table, run, evaluated and compared: python -m tests.study."""
