"""Tests that click in the web UI."""
