"""The sensors, a module a subject. They compare what is there and keep no state but a cursor."""
