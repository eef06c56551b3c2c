"""Everything is killed at random instants, again and again; what comes back is compared with what was written."""
