"""From the arguments of an LLM to requests in the C++ engine, and their outputs."""
