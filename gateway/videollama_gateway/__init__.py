"""The OpenAI API in front of a gRPC server. May import the client, the core's protocol and telemetry; installs without torch."""
