"""Tests of the library and of the demo client."""
