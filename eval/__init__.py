"""Answers scored, arms compared, and the gate that says whether accuracy held."""
