"""The emulated engine's OpenAI HTTP server: a shell around the step machine, in real time."""
