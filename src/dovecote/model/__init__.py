"""The nouns of Dovecote and their legal states: frozen, without I/O."""
