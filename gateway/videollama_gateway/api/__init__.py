"""OpenAI's formats: requests read into questions, answers written. May import the client, the core's protocol and the failures."""
