"""Methods that are a procedure over whole trainings, as programs to run and to read."""
