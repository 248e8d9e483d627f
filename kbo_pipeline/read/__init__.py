"""What readers get of the published register: views, look-up, search, changes, exports, HTTP.

Nothing is written to a register here.
"""
