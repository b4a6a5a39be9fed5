"""A speculative_config that drafts from predictions alone, whether or not that saves time."""

# Matches are never so long.
QUIET = {
    "method": "ngram",
    "num_speculative_tokens": 1,
    "prompt_lookup_min": 900,
    "prompt_lookup_max": 900,
    "adaptive": False,
}
