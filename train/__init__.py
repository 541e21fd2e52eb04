"""From AI Hub records to splits, and from splits to an adapter."""
