"""From messages and text to token ids and back, and the grammars that text must follow."""
