"""The demo: real text, small real models, a real server, three trainings, one table."""
