"""The sensors, a module a subject. They compare what is there with what should be.

What they keep may be lost: the last poll, the marks of alerts that were sent, a login.
"""
