"""Tests of s5jtd: real parts, real processes, names that are sentences."""
