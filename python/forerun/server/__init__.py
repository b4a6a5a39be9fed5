"""The HTTP server with OpenAI's API; it needs the extra `serve`."""
