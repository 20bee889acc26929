"""The rule-based finder: a cellular automaton in the pixels, followed along its helices through the strips."""
